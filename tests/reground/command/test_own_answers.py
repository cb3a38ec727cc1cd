"""A jump after which the round's own answers are less likely is taken back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubextrap import api
from hubextrap.errors import EvaluationError, HubExtrapError
from hubextrap.recipe import load_reground_recipe

Setting = Any


@pytest.fixture
def asked(setting: Callable[..., Setting], tmp_path: Path) -> Callable[..., Setting]:
    """``asked(guard={…}, …)``: three prompts, answered in six tokens."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "1+2="}\n{"prompt": "3+4="}\n{"question": "5+6=", "answer": "11"}\n')

    def make(guard: dict[str, Any] | None = None, **section: Any) -> Setting:
        own = {"prompts": str(prompts), "max_tokens": 6}
        return setting(guard={"max_error": "off", **own, **(guard or {})}, iterations=2, **section)

    return make


def run(setting: Setting) -> api.RegroundResult:
    return api.reground(load_reground_recipe(setting.recipe), setting.out)


def test_a_jump_that_breaks_the_answers_is_taken_back_and_n_halved(asked: Any) -> None:
    setting = asked(jump=4000)
    result = run(setting)
    first, second = setting.history()
    assert (first["action"], first["n_wanted"], first["n_used"]) == ("rolled_back", 4000, 0)
    assert second["n_wanted"] == 2000
    assert first["own_answers_before"] - first["own_answers_after"] >= 0.5
    assert "fallen by 0.5 or more; n 4000 → 2000" in first["reason"]
    assert first["represented_steps"] == 4
    assert result.model == setting.out / "round-002" / "output" / "checkpoint-4"


@pytest.mark.slow
def test_a_jump_that_keeps_them_is_kept_in_the_first_window_too(asked: Any) -> None:
    setting = asked(jump=1, guard={"max_error": 1.0})
    run(setting)
    first, _ = setting.history()
    assert first["action"] == "jumped"
    assert first["reason"].startswith(
        "the first window: only the probe or the own answers judge it, after the jump; own answers"
    )
    assert first["own_answers_before"] - first["own_answers_after"] < 0.5
    assert first["own_answers_before"] < 0.0
    assert first["probe_before"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jump", "score", "action"),
    [(4000, "1.0", "rolled_back"), (1, "{model}", "rolled_back"), (1, "1.0", "jumped")],
    ids=["the answers undo", "the probe undoes", "both keep"],
)
def test_beside_a_probe_both_count(asked: Any, jump: int, score: str, action: str) -> None:
    probe = (
        "case {model} in *extrapolated*) echo 0.0;; *) echo 1.0;; esac"
        if score != "1.0"
        else "echo {model}; echo 1.0"
    )
    setting = asked(jump=jump, guard={"probe": probe, "shell": True, "margin": 0.1})
    run(setting)
    first = setting.history()[0]
    assert first["action"] == action
    assert first["probe_before"] == 1.0
    assert first["own_answers_before"] is not None
    assert first["own_answers_after"] is not None
    assert "; probe 1 before" in first["reason"]
    assert "; own answers " in first["reason"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "holds no problem"),
        ('{"question": "1+2="}\n{"q": 1}\n', "line 2: needs one text, in the field question or prompt"),
    ],
)
def test_prompts_that_do_not_serve_are_said_before_training(
    asked: Any, tmp_path: Path, content: str | None, said: str
) -> None:
    other = tmp_path / "other.jsonl"
    if content is not None:
        other.write_text(content)
    setting = asked(guard={"prompts": str(other)})
    with pytest.raises(EvaluationError, match=said):
        run(setting)
    assert not (setting.out / "round-001").exists()


def test_a_chat_template_that_is_not_there_is_said_before_training(asked: Any) -> None:
    setting = asked(guard={"apply_chat_template": True})
    with pytest.raises(HubExtrapError, match="no chat template"):
        run(setting)
    assert not (setting.out / "round-001").exists()
