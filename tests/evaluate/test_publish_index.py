"""Scores in a card: what a user wrote stays, the real client understands the rest."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from hubextrap.errors import PushError
from hubextrap.hub.card import with_results
from hubextrap.hub.publish import with_model_index

CARD = """\
---
# chosen by hand
license: apache-2.0   # really
tags: [merge, 'rlvr']
language:
- en
---

# My model

Text | with a table.
"""


def figure(value: float, dataset: str = "radd", metric: str = "exact_match", **more: str) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=metric,
        metric_value=value,
        **{"source_name": "hubextrap", "source_url": "http://x/y", **more},  # type: ignore[arg-type]
    )


def results_in(card: str) -> list[tuple[str, str, float]]:
    found = ModelCard(card).data.eval_results or []
    return [(each.dataset_type, each.metric_type, each.metric_value) for each in found]


def test_all_else_stays_byte_for_byte() -> None:
    once = with_model_index(CARD, "mine", [figure(0.5)])
    assert results_in(once) == [("radd", "exact_match", 0.5)]
    assert ModelCard(once).data.model_name == "mine"
    before, after = CARD.split("- en\n")
    assert once.startswith(f"{before}- en\nmodel-index:\n- name: mine\n")
    assert once.endswith(after)
    twice = with_model_index(once, "mine", [figure(0.75), figure(0.9, metric="avg@4")])
    assert results_in(twice) == [("radd", "exact_match", 0.75), ("radd", "avg@4", 0.9)]
    other = with_model_index(twice, "mine", [figure(0.25, dataset="gsm8k")])
    assert len(results_in(other)) == 3
    assert with_model_index(other, "mine", [figure(0.25, dataset="gsm8k")]) == other


def test_scores_of_others_stay() -> None:
    theirs = with_model_index(CARD, "theirs", [figure(0.1, source_name="Their Leaderboard")])
    both = with_model_index(theirs, "mine", [figure(0.9)])
    # the same task by the same metric: two entries, one of each source
    model = yaml.safe_load(both.split("---")[1])["model-index"][0]
    assert model["name"] == "theirs"
    assert [entry["source"]["name"] for entry in model["results"]] == ["Their Leaderboard", "hubextrap"]
    assert both.count("# really") == 1


@pytest.mark.parametrize(
    "index",
    [
        "model-index: [{name: x, results: []}]\n",
        "model-index:\n  - name: x\n    results: []\n",
        "model-index:\n- name: x\n\n  results: []\n",
        "model-index: &a\n- name: x\n  results: []\n",
        "'model-index': [{name: x, results: []}]\n",
        "model-index:\n# theirs\n- name: x\n  results: []\n",
        "model-index:\n",
    ],
)
def test_an_index_however_it_is_written(index: str) -> None:
    for card in (f"---\n{index}license: mit\n---\nBody\n", f"---\nlicense: mit\n{index}---\nBody\n"):
        new = with_model_index(card, "mine", [figure(0.5)])
        assert results_in(new) == [("radd", "exact_match", 0.5)]
        assert ModelCard(new).data.license == "mit"
        assert new.endswith("---\nBody\n")


def test_cards_without_metadata() -> None:
    assert results_in(with_model_index("", "mine", [figure(0.5)])) == [("radd", "exact_match", 0.5)]
    card = with_model_index("# Title\n\n---\n\nText\n", "mine", [figure(0.5)])
    assert results_in(card) == [("radd", "exact_match", 0.5)]
    assert card.endswith("\n# Title\n\n---\n\nText\n")


def test_windows_line_ends() -> None:
    card = with_model_index("---\r\nlicense: mit\r\n---\r\nBody\r\n", "mine", [figure(0.5)])
    assert results_in(card) == [("radd", "exact_match", 0.5)]
    assert card.endswith("---\r\nBody\r\n")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nlicense: [mit\n---\n", "the metadata at its top: not valid YAML"),
        ("---\n- a\n---\n", "the metadata at its top are not a mapping"),
        ("---\nmodel-index: {name: x}\n---\n", r"its model-index is not a list of \{name, results\}"),
        ("---\nmodel-index: [{name: x}]\n---\n", r"its model-index is not a list of \{name, results\}"),
    ],
)
def test_metadata_that_cannot_be_understood(card: str, message: str) -> None:
    with pytest.raises(PushError, match=f"README.md: {message}"):
        with_model_index(card, "mine", [figure(0.5)])


def test_results_are_replaced_in_their_place() -> None:
    once = with_results(CARD, "| a |\n|---|\n| 1 |")
    assert once == (
        f"{CARD}\n## Results\n\n<!-- hubextrap: results -->\n| a |\n|---|\n| 1 |\n"
        "<!-- hubextrap: end of results -->\n"
    )
    edited = once.replace("## Results", "## How good it is") + "\n## Thanks\n\nTo all.\n"
    assert (
        with_results(edited, "new").count("\n## How good it is\n\n<!-- hubextrap: results -->\nnew\n<!--")
        == 1
    )
    assert with_results(edited, "new").endswith("## Thanks\n\nTo all.\n")
    assert with_results("", "new").startswith("## Results")
