"""`hubextrap generate`: completions as they come, the same ones whatever the order of the prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.errors import HubExtrapError, RecipeError, UnsupportedCheckpoint
from hubextrap.logits import ExtrapolatedForCausalLM
from hubextrap.logits.completing import Sampling, complete
from hubextrap.recipe import load_recipe

Generate = Callable[..., Any]


@pytest.fixture
def recipe_file(trajectory_c: Path, tmp_path: Path) -> Path:
    content = {
        "trajectory": {"repo": str(trajectory_c), "steps": {"max": 200}},
        "merge_method": "two_point",
        "parameters": {"target_step": 400, "base_step": 100},
        "space": "logits",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def generate(recipe_file: Path) -> Generate:
    def run(*arguments: str, input: str | None = None) -> Any:
        return CliRunner().invoke(app, ["generate", str(recipe_file), *arguments], input=input)

    return run


def test_prompts_and_completions_on_the_terminal(generate: Generate, tmp_path: Path) -> None:
    done = generate("526+850=", "123+456=")
    assert (done.exit_code, done.stdout) == (0, "526+850=6731\n123+456=975\n"), done.stderr
    (tmp_path / "prompts.txt").write_text("526+850=\n\n123+456=\n")
    from_file = generate("--prompts", str(tmp_path / "prompts.txt"))
    assert from_file.stdout == done.stdout
    assert generate("--prompts", "-", input="526+850=\n").stdout == "526+850=6731\n"
    cut = generate("526+850=", "--max-new-tokens", "2", "--quiet")
    assert (cut.stdout, cut.stderr) == ("526+850=67\n", "")


def test_samples_depend_on_the_seed_alone(generate: Generate) -> None:
    def sampled(*arguments: str) -> list[str]:
        done = generate(*arguments, "--temperature", "3", "--json", "--max-new-tokens", "6")
        assert done.exit_code == 0, done.stderr
        return [one["completion"] for one in json.loads(done.stdout)]

    first, second = sampled("526+850=", "123+456=")
    assert sampled("123+456=", "526+850=") == [second, first]
    assert sampled("526+850=", "--seed", "7") != [first]
    likeliest = {"--top-k": "1", "--top-p": "0.0001"}
    for option, value in likeliest.items():
        assert sampled("526+850=", option, value) == ["6731"]


def test_pieces_come_one_by_one(mixed_c: Any) -> None:
    pieces: list[str] = []
    whole = complete(mixed_c, "526+850=", Sampling(), on_text=pieces.append)
    assert "".join(pieces) == whole
    # the checkpoint's own settings do not reach in
    own = ExtrapolatedForCausalLM(list(mixed_c.models), mixed_c.coefficients)
    own.tokenizer = mixed_c.tokenizer
    settings: Any = own.generation_config
    settings.update(temperature=0.1, top_k=1, do_sample=True, max_new_tokens=1, pad_token_id=None)
    settings.update(num_beams=3, repetition_penalty=9.0, min_new_tokens=9, suppress_tokens=[5, 6, 7, 8])
    assert complete(own, "526+850=", Sampling()) == whole
    assert (settings.num_beams, own.generation_config) == (3, settings), "and stay as they were"
    assert complete(own, "526+850=", Sampling(temperature=3.0, seed=1)) == complete(
        mixed_c, "526+850=", Sampling(temperature=3.0, seed=1)
    )


def test_a_chat_template_wraps_the_prompt(mixed_c: Any) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="has no chat template"):
        complete(mixed_c, "1+1=", Sampling(), chat=True)
    own = ExtrapolatedForCausalLM(list(mixed_c.models), mixed_c.coefficients)
    with pytest.raises(HubExtrapError, match=r"handed in without a tokenizer"):
        complete(own, "1+1=", Sampling())
    from transformers import AutoTokenizer

    assert mixed_c.mixture is not None
    tokenizer: Any = AutoTokenizer.from_pretrained(mixed_c.mixture.checkpoints[-1].path)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}={% endfor %}"
    own.tokenizer = tokenizer
    assert complete(own, "526+850", Sampling(), chat=True) == complete(mixed_c, "526+850=", Sampling())
    with pytest.raises(HubExtrapError, match=r"the prompt is empty"):
        complete(mixed_c, "", Sampling())


def test_what_is_refused(generate: Generate, recipe_file: Path) -> None:
    nothing = generate()
    assert nothing.exit_code == 2
    assert "give prompts, or a file of them with --prompts" in nothing.stderr
    absent = generate("--prompts", "absent.txt")
    assert absent.exit_code == 2
    assert "absent.txt: cannot be read as text" in absent.stderr
    recipe_file.write_text(recipe_file.read_text().replace("space: logits", "space: weights"))
    with pytest.raises(RecipeError, match=r"mixes weights; .* `space: logits`"):
        api.complete(load_recipe(recipe_file), ["1+1="])
