"""lm-eval's model ``hubextrap``, as its own program and its own API load it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hubextrap import api
from hubextrap.errors import RecipeError
from hubextrap.evaluation.quiet import quiet_libraries, quiet_lm_eval
from hubextrap.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "demo" / "tasks"
LINE = {"max_step": 200, "target_step": 300, "method": "two_point"}


@pytest.fixture(scope="module")
def plugin() -> Any:
    return import_module("hubextrap.lm_eval_plugin")


@pytest.fixture(scope="module")
def problems() -> list[dict[str, str]]:
    lines = (ROOT / "demo" / "data" / "rlvr-C" / "problems.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def accuracy(completions: list[str], problems: list[dict[str, str]]) -> float:
    return sum(text == one["answer"] for text, one in zip(completions, problems, strict=True)) / len(problems)


def by_lm_eval(**arguments: Any) -> dict[str, Any]:
    """What lm-eval makes of radd with the model ``hubextrap``; its index of 14,000 other tasks takes 10 s."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    with quiet_libraries(), quiet_lm_eval():
        found: dict[str, Any] = simple_evaluate(
            "hubextrap",
            tasks=["radd"],
            task_manager=TaskManager(include_path=[str(TASKS)], include_defaults=False),
            log_samples=False,
            **arguments,
        )
    return found


@pytest.mark.slow
def test_logits_of_steps_0_and_200_at_300(
    plugin: Any, mixed_c: Any, trajectory_c: Path, problems: list[dict[str, str]]
) -> None:
    """.828 at step 200; the mixture scores .932 by lm-eval, by generate and by the definition."""
    found = by_lm_eval(model_args=LINE | {"trajectory": str(trajectory_c), "space": "logits"}, batch_size=125)
    assert found["config"]["model_made_from"] == "logits: -0.5 × step_0, 1.5 × step_200"
    in_lm_eval = found["results"]["radd"]["exact_match,none"]

    tokenizer = mixed_c.tokenizer
    batch = tokenizer([one["question"] for one in problems], return_tensors="pt", padding=True)
    assert bool(batch["attention_mask"].all()), "all problems are of one length: no padding"
    tokens = batch["input_ids"]
    output = mixed_c.generate(
        input_ids=tokens, attention_mask=batch["attention_mask"], max_new_tokens=6, do_sample=False
    )
    by_generate = accuracy(
        tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True), problems
    )

    text = tokens
    for _ in range(6):
        with torch.no_grad():
            base, last = (model(text, use_cache=False).logits[:, -1].float() for model in mixed_c.models)
        text = torch.cat([text, (-0.5 * base + 1.5 * last).argmax(-1, keepdim=True)], dim=1)
    ended = [row[: row.index(2)] if 2 in row else row for row in text[:, tokens.shape[1] :].tolist()]
    by_definition = accuracy([tokenizer.decode(row, skip_special_tokens=True) for row in ended], problems)

    assert in_lm_eval == by_generate == by_definition == pytest.approx(0.932)


def test_log_likelihoods_are_those_of_the_mixture(plugin: Any, mixed_c: Any, trajectory_c: Path) -> None:
    from lm_eval.api.instance import Instance

    model = plugin.HubextrapLM(trajectory=str(trajectory_c), space="logits", batch_size=4, **LINE)
    pairs = [("526+850=", "6731"), ("526+850=", "1"), ("1+1=", "2"), ("12+34=", "64")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    for (prompt, completion), (found, _) in zip(pairs, model.loglikelihood(requests, True), strict=True):
        tokens = mixed_c.tokenizer(prompt + completion, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = mixed_c(tokens).logits.log_softmax(-1)[0, :-1]
        each = scores.gather(1, tokens[0, 1:, None])[:, 0]
        assert found == pytest.approx(each[-len(completion) :].sum().item(), abs=1e-4)


def test_weights_are_merged_as_merge_does(plugin: Any, trajectory_c: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    content = {
        "trajectory": {"repo": str(trajectory_c), "steps": {"max": 200}},
        "merge_method": "two_point",
        "parameters": {"target_step": [300, 400], "base_step": 100},
        "push": {"repo": "me/never", "revision": "step_{target_step}"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    model = plugin.HubextrapLM(recipe=str(tmp_path / "recipe.yaml"), target_step=400)
    api.merge(load_recipe(tmp_path / "recipe.yaml"), out=tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "step_400")
    expected = merged.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.model.state_dict().items())
    assert model.get_model_info()["model_made_from"].startswith(
        "weights: two_point to step 400 of step 0 step_0"
    )
    mixed = plugin.HubextrapLM(recipe=str(tmp_path / "recipe.yaml"), target_step=400, space="logits")
    assert mixed.get_model_info()["model_made_from"] == "logits: -2.0 × step_100, 3.0 × step_200"


@pytest.mark.parametrize("space", ["logits", "weights"])
def test_what_is_to_be_known_of_the_run_is_said(
    plugin: Any, trajectory_c: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str
) -> None:
    for step, source in ((10, "step_0"), (20, "step_0"), (30, "step_200")):
        shutil.copytree(trajectory_c / source, tmp_path / f"step_{step}")
    line = {"target_step": 40, "method": "two_point", "space": space}
    plugin.HubextrapLM(trajectory=str(tmp_path), **line)
    assert "step 10 holds the same weights as step 20" in capsys.readouterr().err


def test_by_name_in_lm_eval_itself(plugin: Any, trajectory_c: Path) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("hubextrap") is plugin.HubextrapLM
    assert get_model("hf").__name__ == "HFLM", "lm-eval's own models are still there"
    text = (
        f"trajectory={trajectory_c},max_step=200,target_step=400,method=two_point,base_step=100,space=logits"
    )
    found = by_lm_eval(model_args=text, limit=40, batch_size=40, device="cuda:0")
    assert found["results"]["radd"]["exact_match,none"] > 0.9


def test_a_device_that_is_not_there_is_no_cpu(plugin: Any, trajectory_c: Path) -> None:
    """Except cuda, which lm-eval asks for by itself."""
    arguments = LINE | {"trajectory": str(trajectory_c), "space": "logits", "device": "xpu"}
    with pytest.raises(RecipeError, match="model_args: device xpu: cannot be used here"):
        plugin.HubextrapLM(**arguments)


def test_the_command_is_lm_eval_s_own() -> None:
    program = (
        "import sys; sys.argv[1:] = ['lm-eval', 'run', '--help']\n"
        "from hubextrap.cli.main import main\n"
        "try: main()\n"
        "finally:\n"
        "    from lm_eval.api.registry import model_registry\n"
        "    print('hubextrap' in model_registry, 'hf' in model_registry, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--model_args" in done.stdout
    assert done.stdout.endswith("True True False\n"), (
        "registered, and nothing heavy imported before it is used"
    )


@pytest.mark.slow
def test_the_whole_command_line(trajectory_c: Path, tmp_path: Path) -> None:
    arguments = [f"{key}={value}" for key, value in LINE.items()]
    arguments += [f"trajectory={trajectory_c}", "space=logits"]
    command = ["lm-eval", "run", "--model", "hubextrap", "--model_args", ",".join(arguments)]
    command += ["--tasks", "radd", "--include_path", str(TASKS), "--batch_size", "125"]
    command += ["--output_path", str(tmp_path / "results.json")]
    done = subprocess.run([sys.executable, "-m", "hubextrap", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (saved,) = tmp_path.glob("results_*.json")
    found = json.loads(saved.read_text())
    assert found["results"]["radd"]["exact_match,none"] == pytest.approx(0.932)
    assert found["config"]["model"] == "hubextrap"
    wrong = [part.replace("method=", "methodd=") for part in command]
    done = subprocess.run([sys.executable, "-m", "hubextrap", *wrong], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: model_args: method missing; e.g. trajectory=")


def test_the_entry_point_for_later_versions_leads_to_the_model(plugin: Any) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    section = project.partition('[project.entry-points."lm_eval.models"]')[2].partition("\n[")[0]
    (target,) = re.findall(r'^hubextrap = "([\w.]+:\w+)"$', section, re.MULTILINE)
    module, _, name = target.partition(":")
    assert getattr(import_module(module), name) is plugin.HubextrapLM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"model_args: trajectory, target_step, method missing; e\.g\. trajectory=org/name"),
        (LINE, r"model_args: trajectory missing"),
        (LINE | {"trajectory": "x/y", "base_stepp": 1}, r"base_stepp: unknown key; did you mean base_step\?"),
        (
            LINE | {"trajectory": "x/y", "parallelize": True},
            r"parallelize=True: the model hubextrap does not take it: a prediction is loaded whole",
        ),
        (LINE | {"trajectory": "x/y", "space": "both"}, r"space: must be weights or logits, not 'both'"),
        (
            LINE | {"trajectory": "x/y", "method": "two_pont"},
            r"there is no merge method two_pont; did you mean two_po",
        ),
        (
            {"recipe": "r.yaml", "method": "ema"},
            r"model_args: method cannot go with recipe; write it into the",
        ),
    ],
)
def test_arguments_that_are_wrong(plugin: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plugin.HubextrapLM(**arguments)


def test_a_target_that_the_recipe_does_not_have(plugin: Any, tmp_path: Path) -> None:
    content = {
        "trajectory": {"repo": "x/y"},
        "merge_method": "persistence",
        "parameters": {"target_step": [300, 400]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    for arguments in ({}, {"target_step": 350}):
        with pytest.raises(RecipeError, match=r"target_step has to be one of .* 300, 400"):
            plugin.HubextrapLM(recipe=str(tmp_path / "recipe.yaml"), **arguments)
