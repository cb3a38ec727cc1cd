"""A prediction is compared with the checkpoints that its hubextrap.json pins."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import Lines

from hubextrap.errors import CorruptFile, EvaluationError, ReferenceNotFound
from hubextrap.evaluation import compared_checkpoints
from hubextrap.hub import build_provenance
from hubextrap.localhub import LocalHub
from hubextrap.trajectory import Checkpoint

STEPS = (0, 100, 200, 400)


def provenance(inputs: Sequence[Checkpoint], target: int = 400, recipe: str = "") -> bytes:
    return build_provenance(
        checkpoints=inputs,
        merge_method="two_point",
        parameters={},
        target_step=target,
        coefficients=(),
        shards=(),
        dtype="float32",
        out_dtype=None,
        recipe=recipe,
    ).to_bytes()


def model(weights: bytes) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": weights}


@pytest.fixture
def run(hub: LocalHub, repo_id: str) -> dict[int, Checkpoint]:
    """A run on the hub: branches step_0 … step_400."""
    hub.create_repo(repo_id)
    return {
        step: Checkpoint(
            step,
            repo_id,
            f"step_{step}",
            hub.commit(repo_id, model(b"weights at %d" % step), revision=f"step_{step}"),
            "",
        )
        for step in STEPS
    }


@pytest.fixture
def prediction(hub: LocalHub, repo_id: str, run: dict[int, Checkpoint]) -> str:
    """A prediction of step 400 from steps 0, 100 and 200, in a repo of its own."""
    repo = f"{repo_id}-predicted"
    hub.create_repo(repo)
    files = model(b"predicted") | {"hubextrap.json": provenance([run[0], run[100], run[200]])}
    hub.commit(repo, files, revision="step_400")
    return f"{repo}@step_400"


def brief(rows: list[tuple[str, Checkpoint]]) -> list[tuple[str, int, str]]:
    return [(label, item.step, item.name) for label, item in rows]


def test_a_prediction_brings_last_base_and_target(prediction: str, run: dict[int, Checkpoint]) -> None:
    rows = compared_checkpoints([prediction])
    assert brief(rows) == [
        ("prediction", 400, prediction),
        ("last", 200, run[200].name),
        ("base", 0, run[0].name),
        ("target", 400, run[400].name),
    ]
    assert [item.commit for _, item in rows[1:]] == [run[step].commit for step in (200, 0, 400)]


def test_inputs_stay_pinned_when_their_branch_moves_on(
    hub: LocalHub, prediction: str, run: dict[int, Checkpoint]
) -> None:
    assert run[200].repo
    hub.commit(run[200].repo, model(b"trained again"), revision="step_200")
    (_, last) = compared_checkpoints([prediction], ["last"])[1]
    assert last.commit == run[200].commit


def test_against_chooses_and_adds(prediction: str, run: dict[int, Checkpoint]) -> None:
    labels = [label for label, _ in compared_checkpoints([prediction], ["target", run[100].name])]
    assert labels == ["prediction", "target", run[100].name]
    assert [label for label, _ in compared_checkpoints([prediction], [])] == ["prediction"]
    rows = compared_checkpoints([prediction], [f"last={run[100].name}"])
    assert brief(rows)[1] == ("last", 100, run[100].name)


def test_a_checkpoint_that_has_a_role_is_one_row(prediction: str, run: dict[int, Checkpoint]) -> None:
    rows = compared_checkpoints([prediction, run[400].name, run[200].name, run[100].name], ["last", "target"])
    assert [label for label, _ in rows] == ["prediction", run[100].name, "last", "target"]


def test_a_prediction_is_never_the_real_target(
    hub: LocalHub, prediction: str, run: dict[int, Checkpoint]
) -> None:
    repo = run[0].repo
    assert repo
    hub.commit(
        repo,
        model(b"predicted too") | {"hubextrap.json": provenance([run[0], run[200]])},
        revision="step_400",
    )
    assert "target" not in [label for label, _ in compared_checkpoints([prediction])]


def test_steps_that_a_recipe_scaled_find_their_target(
    hub: LocalHub, repo_id: str, run: dict[int, Checkpoint]
) -> None:
    scaled = [Checkpoint(10 * step, repo_id, f"step_{step}", run[step].commit, "") for step in (0, 200)]
    hub.commit(
        repo_id, model(b"predicted") | {"hubextrap.json": provenance(scaled, 4000)}, revision="predicted"
    )
    rows = compared_checkpoints([f"{repo_id}@predicted"], ["target"])
    assert brief(rows)[1] == ("target", 4000, run[400].name)


RECIPE = (
    "{{trajectory: {{repo: {repo}, steps: {{{steps}}}}}, merge_method: persistence, "
    "parameters: {{target_step: 9}}}}"
)


@pytest.fixture
def epochs(hub: LocalHub, repo_id: str) -> dict[int, Checkpoint]:
    """A run whose branches count in units of two and a half steps: step_1 is step 2, step_3 step 8, …"""
    hub.create_repo(repo_id)
    return {
        number: Checkpoint(
            round(2.5 * number),
            repo_id,
            f"step_{number}",
            hub.commit(repo_id, model(b"weights at %d" % number), revision=f"step_{number}"),
            "",
        )
        for number in range(8)
    }


@pytest.mark.parametrize("numbers", [(0, 1, 3), (0, 3), (1, 2, 3), (3,), (2, 3)])
@pytest.mark.parametrize("recipe", [RECIPE, ""])
def test_steps_that_were_scaled_and_rounded_find_their_target(
    hub: LocalHub, repo_id: str, epochs: dict[int, Checkpoint], numbers: tuple[int, ...], recipe: str
) -> None:
    """2.5 · 3 is 8, and 2.5 · 7 is 18: no ratio of these steps is 2.5."""
    text = recipe.format(repo=repo_id, steps="scale: 2.5")
    files = {"hubextrap.json": provenance([epochs[number] for number in numbers], 18, text)}
    hub.commit(repo_id, model(b"predicted") | files, revision="predicted")
    rows = compared_checkpoints([f"{repo_id}@predicted"], ["target"])
    assert brief(rows)[1:] == [("target", 18, epochs[7].name)]


def test_a_rounded_step_that_was_not_trained_has_no_target(
    hub: LocalHub, repo_id: str, epochs: dict[int, Checkpoint]
) -> None:
    for recipe in (RECIPE.format(repo=repo_id, steps="scale: 2.5"), ""):
        for target in (16, 17, 19, 21):
            files = {"hubextrap.json": provenance([epochs[0], epochs[3]], target, recipe)}
            hub.commit(repo_id, model(b"predicted") | files, revision="predicted")
            assert len(compared_checkpoints([f"{repo_id}@predicted"], ["target"])) == 1, target


@pytest.mark.parametrize("target", [0, 100, 300])
@pytest.mark.parametrize("recipe", [RECIPE, ""])
def test_step_0_alone_is_no_real_target_of_a_later_step(
    hub: LocalHub, repo_id: str, run: dict[int, Checkpoint], target: int, recipe: str
) -> None:
    text = recipe.format(repo=repo_id, steps="max: 0")
    files = {"hubextrap.json": provenance([run[0]], target, text)}
    hub.commit(repo_id, model(b"predicted") | files, revision="predicted")
    found = brief(compared_checkpoints([f"{repo_id}@predicted"], ["target"]))[1:]
    assert found == ([("target", target, run[target].name)] if target in run else [])


def test_the_target_of_a_run_with_names_of_its_own(hub: LocalHub, repo_id: str) -> None:
    """Found by the recipe's pattern, which the built-in grammar does not know."""
    hub.create_repo(repo_id)
    at = {n: hub.commit(repo_id, model(b"%d" % n), revision=f"after-{n}-of-9") for n in (1, 2, 4)}
    inputs = [Checkpoint(n, repo_id, f"after-{n}-of-9", at[n], "") for n in (1, 2)]
    recipe = RECIPE.format(repo=repo_id, steps="pattern: 'after-{step}-of-9'")
    files = {"hubextrap.json": provenance(inputs, 4, recipe)}
    hub.commit(repo_id, model(b"predicted") | files, revision="predicted")
    rows = compared_checkpoints([f"{repo_id}@predicted"], ["target"])
    assert brief(rows)[1:] == [("target", 4, f"{repo_id}@after-4-of-9")]


def test_a_target_that_was_not_trained_is_left_out(
    hub: LocalHub, repo_id: str, run: dict[int, Checkpoint]
) -> None:
    files = model(b"predicted") | {"hubextrap.json": provenance([run[0], run[200]], 800)}
    hub.commit(repo_id, files, revision="predicted")
    assert [label for label, _ in compared_checkpoints([f"{repo_id}@predicted"])] == [
        "prediction",
        "last",
        "base",
    ]


def test_local_inputs_have_to_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "predicted"
    folder.mkdir()
    inputs = [Checkpoint(step, None, "", None, str(tmp_path / f"step_{step}")) for step in (0, 200)]
    for name, content in (model(b"predicted") | {"hubextrap.json": provenance(inputs)}).items():
        (folder / name).write_bytes(content)
    said = Lines()
    rows = compared_checkpoints([str(folder)], progress=said)  # type: ignore[arg-type]
    assert brief(rows) == [("prediction", 400, str(folder))]
    last = (
        f"{folder}: its last checkpoint, step 200, was the local folder 'step_200', which is not found from "
        "here; name the run that it came from: --run FOLDER; or that checkpoint: --against last=FOLDER"
    )
    assert said.said[0] == last
    with pytest.raises(EvaluationError) as error:
        compared_checkpoints([str(folder)], ["last"])
    assert str(error.value) == last


def test_inputs_in_a_bucket_have_to_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / "predicted"
    folder.mkdir()
    inputs = [Checkpoint(step, "buckets/me/run", "", "0" * 40, f"step_{step}/actor") for step in (0, 200)]
    for name, content in (model(b"predicted") | {"hubextrap.json": provenance(inputs)}).items():
        (folder / name).write_bytes(content)
    said = Lines()
    rows = compared_checkpoints([str(folder)], progress=said)  # type: ignore[arg-type]
    assert brief(rows) == [("prediction", 400, str(folder))]
    how = r"hf buckets sync hf://buckets/me/run/step_200/actor FOLDER\) and name it: --against last=FOLDER"
    assert re.search(how, said.said[0])
    with pytest.raises(EvaluationError, match=how):
        compared_checkpoints([str(folder)], ["last"])


def test_no_provenance_no_roles(run: dict[int, Checkpoint]) -> None:
    assert [label for label, _ in compared_checkpoints([run[100].name])] == [run[100].name]
    with pytest.raises(EvaluationError, match=r"--against last: .* hubextrap\.json"):
        compared_checkpoints([run[100].name], ["last"])


def test_two_predictions_share_their_rows_or_are_refused(
    hub: LocalHub, repo_id: str, prediction: str, run: dict[int, Checkpoint]
) -> None:
    for branch, inputs in (("same", [run[0], run[200]]), ("other", [run[0], run[100]])):
        hub.commit(repo_id, model(b"p") | {"hubextrap.json": provenance(inputs)}, revision=branch)
    rows = compared_checkpoints([prediction, f"{repo_id}@same"])
    assert [label for label, _ in rows] == [
        f"prediction {prediction}", f"prediction {repo_id}@same", "last", "base", "target"
    ]  # fmt: skip
    with pytest.raises(EvaluationError, match=r"two .* 'last': .*step_200 and .*step_100"):
        compared_checkpoints([prediction, f"{repo_id}@other"])


def test_what_leads_nowhere(hub: LocalHub, repo_id: str, run: dict[int, Checkpoint]) -> None:
    with pytest.raises(ReferenceNotFound, match=r"@step_300: no such revision"):
        compared_checkpoints([f"{repo_id}@step_300"])
    hub.commit(repo_id, model(b"p") | {"hubextrap.json": json.dumps({"format": 9}).encode()}, revision="new")
    with pytest.raises(CorruptFile, match=r"@new: hubextrap\.json: has format 9"):
        compared_checkpoints([f"{repo_id}@new"])
