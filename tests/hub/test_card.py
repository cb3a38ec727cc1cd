from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from huggingface_hub import ModelCard, get_session

from hubextrap.hub.card import model_card, with_results, with_target, with_verdict
from hubextrap.hub.provenance import CoefficientRule
from hubextrap.hub.provenance_checks import read_provenance
from hubextrap.localhub import LocalHub

Make = Callable[..., Any]

LAST_CARD = """\
---
license: other
license_name: qwen-research
license_link: https://example.org/LICENSE
language: [en, zh]
pipeline_tag: text-generation
datasets: [open/math]
tags: [grpo]
base_model: Qwen/Qwen2.5-Math-1.5B
model-index: 3
---
# Somebody else's model
"""


def metadata(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_metadata(make_provenance: Make) -> None:
    assert metadata(model_card(make_provenance())) == {
        "base_model": ["me/run"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["hubextrap", "merge", "extrapolation", "rlvr"],
    }


def test_metadata_that_is_carried_over(make_provenance: Make) -> None:
    found = metadata(model_card(make_provenance(), LAST_CARD))
    assert found["license"] == "other"
    assert found["license_name"] == "qwen-research"
    assert found["license_link"] == "https://example.org/LICENSE"
    assert found["language"] == ["en", "zh"]
    assert found["pipeline_tag"] == "text-generation"
    assert found["datasets"] == ["open/math"]
    assert found["base_model"] == ["me/run"]
    assert found["tags"] == ["hubextrap", "merge", "extrapolation", "rlvr"]
    assert "model-index" not in found


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# no metadata",
        "---\nlicense: [\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: 3\nlanguage: []\n---\n",
        "---\nlicense: mit",
        "---\n",
    ],
)
def test_a_card_that_cannot_be_read_gives_nothing(card: str, make_provenance: Make) -> None:
    assert model_card(make_provenance(), card) == model_card(make_provenance())


def test_several_repos_and_a_local_folder(make_provenance: Make, make_checkpoint: Make) -> None:
    checkpoints = [
        make_checkpoint(0, "Qwen/Base"),
        make_checkpoint(100, "me/run", "global_step_100/actor"),
        make_checkpoint(200, "me/run"),
        make_checkpoint(300, None, "/home/secret/step_300"),
    ]
    card = model_card(make_provenance(checkpoints=checkpoints))
    assert metadata(card)["base_model"] == ["Qwen/Base", "me/run"]
    assert f"| 100 | `me/run@step_100:global_step_100/actor` | `{100:040x}` |" in card
    assert "| 300 | local folder `step_300` |  |" in card
    assert "secret" not in card


def test_only_local_folders(make_provenance: Make, make_checkpoint: Make) -> None:
    found = metadata(
        model_card(
            make_provenance(checkpoints=[make_checkpoint(step, None, f"/x/s{step}") for step in (0, 200)])
        )
    )
    assert "base_model" not in found
    assert "base_model_relation" not in found


def test_what_the_body_says(make_provenance: Make) -> None:
    card = model_card(make_provenance())
    body = card.split("---\n", 2)[2]
    assert body.lstrip().startswith(
        "# run, predicted at step 400\n\n> [!WARNING]\n> **This is a prediction, not"
    )
    assert f"| 0 | `me/run@step_0` | `{0:040x}` |" in body
    assert "| **400** | **this model** | |" in body
    assert "(400 − 200) / (200 − 0) = **1**" in body
    assert "method: `two_point`" in body
    (folded,) = re.findall(r"<details>\n(.*?)\n</details>", body, re.DOTALL)
    assert "| tensors | method | step 100 | step 200 |\n|---|---|---:|---:|\n" in folded
    assert "| `*norm*` | persistence | 0 | 1 |\n| `*` | two_point | -2 | 3 |\n" in folded
    assert "other tensors or rules" not in folded
    assert "Nothing was measured on this model" in body


def test_results(make_provenance: Make) -> None:
    card = with_results(model_card(make_provenance()), "| task | x |\n|---|---|\n| radd | 1 |\n")
    assert "## Results\n\n<!-- hubextrap: results -->\n| task | x |" in card
    assert "Nothing was measured" not in card


def test_a_long_trajectory_is_cut(make_provenance: Make) -> None:
    rule = CoefficientRule(
        match="*", method="least_squares", coefficients={step: step + 0.5 for step in range(40)}
    )
    card = model_card(make_provenance(coefficients=[rule]))
    assert "| step 28 | step 29 |\n" in card
    assert "The coefficients of the steps after 29 are in `hubextrap.json`." in card


def test_coefficients_per_tensor_are_one_folded_table(make_provenance: Make) -> None:
    rules = [
        CoefficientRule(match=f"layers.{number}.a|b", method="calibrated", coefficients={0: 0.0, 200: 1.0})
        for number in range(11)
    ]
    card = model_card(make_provenance(coefficients=rules))
    assert card.count("<details>") == card.count("</details>") == card.count("| tensors |") == 1
    assert len(re.findall(r"^\| `layers\.\d\.a\\\|b` \| calibrated \| 1 \|$", card, re.MULTILINE)) == 8
    assert "The coefficients of 3 other tensors or rules are in `hubextrap.json`." in card
    assert "step 0 |" not in card


VERL = "global_step_{}/actor/huggingface"


@pytest.mark.parametrize(
    ("places", "name", "shown"),
    [
        ([(None, f"/home/secret/grpo-7b/{VERL}")], "grpo-7b", f"local folder `{VERL}`"),
        ([(None, "/home/secret/out/checkpoint-{}")], "out", "local folder `checkpoint-{}`"),
        ([(None, "/home/secret/step_{}")], "A run", "local folder `step_{}`"),
        ([(None, "/home/secret/out/checkpoints/v{}")], "out", "local folder `checkpoints/v{}`"),
        ([("Q/Base", ""), (None, f"/x/secret/grpo-7b/{VERL}")], "grpo-7b", f"local folder `{VERL}`"),
        ([("me/grpo-7b", VERL)], "grpo-7b", f"`me/grpo-7b@step_{{}}:{VERL}`"),
        ([("me/runs", f"exp1/{VERL}")], "exp1", f"`me/runs@step_{{}}:exp1/{VERL}`"),
        ([("Q/Base", ""), ("me/run-step-{}", "")], "run", "`me/run-step-{}@step_{}`"),
    ],
)
def test_the_heading_is_the_run(
    places: list[tuple[str | None, str]],
    name: str,
    shown: str,
    make_provenance: Make,
    make_checkpoint: Make,
) -> None:
    numbers = (100, 200) if len(places) == 1 else (0, 200)
    checkpoints = [
        make_checkpoint(step, repo and repo.format(step), path.format(step))
        for step, (repo, path) in zip(numbers, (places * 2)[-2:], strict=True)
    ]
    rule = CoefficientRule(match="*", method="two_point", coefficients={200: 1.0})
    made = make_provenance(checkpoints=checkpoints, coefficients=[rule])
    for provenance in (made, read_provenance(made.to_bytes())):
        card = model_card(provenance)
        assert f"\n# {name}, predicted at step 400\n" in card
        assert f"| 200 | {shown.replace('{}', '200')} |" in card
        assert "secret" not in card + made.to_bytes().decode()


def test_the_recipe_is_quoted_whole(make_provenance: Make) -> None:
    recipe = "merge_method: two_point\n# ```\n# ````yaml\n"
    card = model_card(make_provenance(recipe=recipe))
    match = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert match
    assert match[1] == "`" * 5
    assert match[2] == recipe.strip()


def test_names_cannot_break_the_table(make_provenance: Make, make_checkpoint: Make) -> None:
    card = model_card(
        make_provenance(checkpoints=[make_checkpoint(0, "me/run", "a|b`c\nd"), make_checkpoint(9)])
    )
    assert "`` me/run@step_0:a\\|b`c d ``" in card


def snippet(card: str) -> str:
    match = re.search(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert match
    ast.parse(match[1])
    return match[1]


def test_the_snippet_loads_the_target(make_provenance: Make) -> None:
    card = model_card(make_provenance())
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in snippet(card)
    pushed = with_target(card, "me/x", "step_400")
    assert 'AutoModelForCausalLM.from_pretrained("me/x", revision="step_400")' in snippet(pushed)
    assert with_target(pushed, "me/x", "step_400") == pushed
    assert 'AutoTokenizer.from_pretrained("me/x")' in snippet(with_target(pushed, "me/x", "main"))
    assert with_target("# my own card", "me/x", "main") == "# my own card"


def objections(hub: LocalHub, card: str) -> list[str]:
    """What the hub has against a card, asked without the client: older ones ask another hub."""
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"content": card, "repoType": "model"})
    return [error["message"] for error in answer.json()["errors"]]


ODD_CARDS = {
    "a licence by its title": ({"license": "Apache License 2.0"}, {"license": "other"}),
    "a licence of tomorrow": ({"license": "llama9"}, {"license": "other", "license_name": "llama9"}),
    "in capitals": ({"license": "Apache-2.0"}, {"license": "apache-2.0"}),
    "several": ({"license": ["mit", "GPL-3.0"]}, {"license": ["mit", "gpl-3.0"]}),
    "several, one unknown": (
        {"license": ["mit", "mine"], "license_link": "LICENSE"},
        {"license": "other", "license_name": "mit and mine", "license_link": "LICENSE"},
    ),
    "a named other": ({"license": "other", "license_name": "qwen"}, {"license_name": "qwen"}),
    "a name in a list": ({"license": "mit", "license_name": ["a"]}, {"license": "mit", "license_name": None}),
    "empty": ({"license": "", "license_link": "", "pipeline_tag": ""}, {"license": None}),
    "null": ({"license": None, "datasets": [None], "language": [None, "en"]}, {"language": ["en"]}),
    "no as a language": ({"language": [False, "nb"]}, {"language": ["nb"]}),
    "datasets in words": ({"datasets": ["my own data", "a/b"]}, {"datasets": ["a/b"]}),
    "a list of tasks": ({"pipeline_tag": ["text-generation"]}, {"pipeline_tag": None}),
}


@pytest.mark.parametrize(("metadata_there", "metadata_here"), ODD_CARDS.values(), ids=ODD_CARDS)
def test_the_hub_accepts_what_an_odd_card_leaves(
    hub: LocalHub,
    make_provenance: Make,
    metadata_there: dict[str, Any],
    metadata_here: dict[str, Any],
) -> None:
    last = f"---\n{yaml.safe_dump(metadata_there)}---\n"
    card = model_card(make_provenance(), last)
    assert objections(hub, card) == []
    found = metadata(card)
    assert {name: found.get(name) for name in metadata_here} == metadata_here


def test_a_bad_date_in_a_card_is_text_and_a_number_without_end_is_none(make_provenance: Make) -> None:
    card = "---\nlicense: mit\ndate: 2024-13-45\n---\n"
    assert metadata(model_card(make_provenance(), card))["license"] == "mit"
    card = "---\nlicense: mit\ndate: " + "9" * 5000 + "\n---\n"
    assert model_card(make_provenance(), card) == model_card(make_provenance())


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("license: other", "license: Qwen Research"),
        ("base_model_relation: merge", "base_model_relation: prediction"),
        ("- me/run", "- /home/me/run"),
        ("- rlvr", "- 8"),
        ("- open/math", "-"),
        ("pipeline_tag: text-generation", "pipeline_tag: [text-generation]"),
    ],
)
def test_the_hub_refuses_worse_metadata(hub: LocalHub, make_provenance: Make, field: str, bad: str) -> None:
    card = model_card(make_provenance(), LAST_CARD)
    assert card.count(f"{field}\n") == 1
    assert objections(hub, card) == []
    assert objections(hub, card.replace(f"{field}\n", f"{bad}\n")) != []


def test_the_hub_accepts_the_metadata(hub: LocalHub, make_provenance: Make) -> None:
    card = with_target(model_card(make_provenance(), LAST_CARD), "me/x", "step_400")
    question = json.dumps({"repoType": "model", "content": card}).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{hub.url}/api/validate-yaml", question, headers)) as answer:
        assert json.load(answer)["errors"] == []
    assert ModelCard(card).data.base_model == ["me/run"]
    assert [request.status for request in hub.requests] == [200]


def test_the_verdict_stands_on_top_and_scores_take_its_place(make_provenance: Make) -> None:
    card = model_card(make_provenance(), verdict="✓ Extrapolation looks promising: <b>step 3")
    top = card.partition("## What it was predicted from")[0]
    assert "**✓ Extrapolation looks promising: &lt;b>step 3**" in top or "\\<b>step 3**" in top
    scored = with_verdict(card, "✕ The prediction scored worse")
    assert "looks promising" not in scored
    assert "**✕ The prediction scored worse**" in scored.partition("## What it was predicted from")[0]
    assert with_verdict(model_card(make_provenance()), "✕") == model_card(make_provenance())
