"""Runs of adapters: found in every layout, never mixed with whole models, with the base model at step 0."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from harness import Lines

from hubextrap.cli.main import main
from hubextrap.errors import StepError, UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.opening import Run
from hubextrap.regrounding.resuming import FOLDER
from hubextrap.tensors import describe, open_source
from hubextrap.trajectory import (
    Checkpoint,
    Trajectory,
    find_series,
    find_trajectory,
    pin_checkpoints,
    resolve_checkpoint,
    run_name,
)
from hubextrap.trajectory.checkpoint import ADAPTER, BASE, MODEL, UNTOUCHED_BASE
from hubextrap.trajectory.weights import weights_of

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Files = dict[str, bytes]
Model = Callable[..., Files]


@pytest.fixture
def adapter(safetensors_bytes: Callable[..., bytes]) -> Model:
    """Makes the files of a tiny adapter: ``adapter(seed, folder)``."""

    def make(seed: int, folder: str = "") -> Files:
        files = {FILE: safetensors_bytes(seed), CONFIG: b'{"peft_type": "LORA"}', "README.md": b"card"}
        return {f"{folder}/{name}" if folder else name: content for name, content in files.items()}

    return make


def write(root: Path, files: Files) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def run(tmp_path: Path, adapter: Model) -> Path:
    """Adapters at steps 10 to 40, as the Trainer leaves them."""
    for step in (10, 20, 30, 40):
        write(tmp_path / "run", adapter(step, f"checkpoint-{step}"))
        write(
            tmp_path / "run",
            {f"checkpoint-{step}/optimizer.pt": b"", f"checkpoint-{step}/rng_state.pth": b""},
        )
    return tmp_path / "run"


def kinds(found: Trajectory) -> dict[int, str]:
    return {one.step: one.kind for one in found.checkpoints}


OF_ADAPTERS = {0: BASE, 1: ADAPTER, 2: ADAPTER}


def test_folders(run: Path) -> None:
    found = find_trajectory(str(run))
    assert found.steps == (0, 10, 20, 30, 40)
    assert found.of_adapters
    assert found.checkpoints[0] == UNTOUCHED_BASE
    assert found.checkpoints[0].name == "the base model"
    assert found.base_model is None
    assert [one.path for one in found.checkpoints[1:]] == [
        str(run / f"checkpoint-{n}") for n in (10, 20, 30, 40)
    ]
    assert found.last.kind == ADAPTER
    assert found.last.size == (run / "checkpoint-40" / FILE).stat().st_size


def test_whole_models_are_no_adapters(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_1") | model(2, "step_2"))
    found = find_trajectory(str(tmp_path))
    assert kinds(found) == {1: MODEL, 2: MODEL}
    assert not found.of_adapters


@pytest.mark.parametrize("tags", [False, True])
def test_branches_and_tags(hub: LocalHub, repo_id: str, adapter: Model, tags: bool) -> None:
    hub.create_repo(repo_id)
    commits = []
    for step in (1, 2):
        commits.append(hub.commit(repo_id, adapter(step), revision="main" if tags else f"step_{step}"))
        if tags:
            hub.tag(repo_id, f"step_{step}")
    found = find_trajectory(repo_id)
    assert kinds(found) == OF_ADAPTERS
    assert [one.commit for one in found.checkpoints] == [None, *commits]


def test_subfolders_and_verl(hub: LocalHub, repo_id: str, adapter: Model) -> None:
    """Beside its adapter verl leaves shards of the whole model, and its tokenizer."""
    hub.create_repo(repo_id)
    for step in (1, 2):
        shards = {
            f"global_step_{step}/actor/model_world_size_2_rank_0.pt": b"shard",
            f"global_step_{step}/actor/huggingface/tokenizer.json": b"{}",
        }
        hub.commit(repo_id, adapter(step, f"global_step_{step}/actor/lora_adapter") | shards)
    shards = {"global_step_3/actor/model_world_size_2_rank_0.pt": b"shard"}
    hub.commit(repo_id, shards)
    told = Lines()
    found = find_trajectory(repo_id, progress=told)
    assert kinds(found) == OF_ADAPTERS
    assert found.series == "global_step_{step}/actor/lora_adapter"
    assert found.last.path == "global_step_2/actor/lora_adapter"
    assert told.said == [
        f"warning: left out step 3, {repo_id}@main:global_step_3/actor: no safetensors, unlike other steps"
    ]
    one = resolve_checkpoint(f"{repo_id}:global_step_2/actor/lora_adapter")
    assert (one.step, one.kind) == (2, ADAPTER)


def test_sibling_repos(hub: LocalHub, repo_id: str, adapter: Model) -> None:
    for step in (1, 2):
        hub.create_repo(f"{repo_id}-step-{step}")
        hub.commit(f"{repo_id}-step-{step}", adapter(step))
    found = find_trajectory(repo_id)
    assert kinds(found) == OF_ADAPTERS
    assert [one.repo for one in found.checkpoints] == [None, f"{repo_id}-step-1", f"{repo_id}-step-2"]
    assert run_name(found.checkpoints) == repo_id.partition("/")[2]


def test_the_commit_history(hub: LocalHub, repo_id: str, adapter: Model) -> None:
    hub.create_repo(repo_id)
    for step in (1, 2):
        date = datetime(2026, 1, 1, 0, step, tzinfo=timezone.utc)
        hub.commit(repo_id, adapter(step), message=f"Training in progress, step {step}", date=date)
    assert kinds(find_trajectory(repo_id)) == OF_ADAPTERS


def test_an_adapter_of_another_name_lies_deeper(tmp_path: Path, adapter: Model) -> None:
    """peft saves all but `default` in folders of their names; what lies beside another is no series."""
    for step in (1, 2):
        write(tmp_path, adapter(step, f"a/checkpoint-{step}/policy"))
        write(tmp_path, adapter(step, f"b/checkpoint-{step}") | adapter(0, f"b/checkpoint-{step}/reference"))
    assert find_trajectory(str(tmp_path / "a")).series == "checkpoint-{step}/policy"
    found = find_trajectory(str(tmp_path / "b"))
    assert [Path(one.path).name for one in found.checkpoints[1:]] == ["checkpoint-1", "checkpoint-2"]


def test_a_merged_model_at_the_root_is_none_of_the_run(run: Path, model: Model) -> None:
    write(run, model(1) | {CONFIG: b"{}"})
    assert find_trajectory(str(run)).steps == (0, 10, 20, 30, 40)


def test_snapshots_of_the_callback_are_no_model(run: Path, model: Model) -> None:
    """They lie in each checkpoint of a run that jumped, and are safetensors."""
    (content,) = (content for name, content in model(1).items() if name.endswith(".safetensors"))
    for step in (10, 20, 30, 40):
        write(run, {f"checkpoint-{step}/{FOLDER}/rank-0/step-{step}.safetensors": content})
    found = find_trajectory(str(run))
    assert kinds(found) == {0: BASE, 10: ADAPTER, 20: ADAPTER, 30: ADAPTER, 40: ADAPTER}
    assert {one.note for one in found.checkpoints} == {None}


def test_step_0_is_taken_as_other_steps_are(run: Path) -> None:
    assert find_trajectory(str(run), min_step=0, max_step=10).steps == (0, 10)
    assert find_trajectory(str(run), min_step=1).steps == (10, 20, 30, 40)
    assert find_trajectory(str(run), steps=[0, 20]).steps == (0, 20)
    assert find_trajectory(str(run), steps=[20, 30]).steps == (20, 30)
    for asked in ({"steps": [0, 25]}, {"steps": [0]}, {"steps": [0, 20], "min_step": 5}):
        with pytest.raises(StepError, match=r"step (25|0) is not there"):
            find_trajectory(str(run), **asked)


def test_a_step_0_without_a_file_is_one_of_adapters_alone(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_1") | model(2, "step_2"))
    with pytest.raises(StepError, match="step 0 is not there; the nearest are 1, 2"):
        find_trajectory(str(tmp_path), steps=[0, 1])


def test_an_adapter_saved_at_step_0_stays(run: Path, adapter: Model, tmp_path: Path, model: Model) -> None:
    write(run, adapter(0, "checkpoint-0"))
    base = write(tmp_path / "base", model(1))
    for found in (find_trajectory(str(run)), find_trajectory(str(run), base=str(base))):
        assert (found.steps[0], found.checkpoints[0].kind) == (0, ADAPTER)
        assert len(found.checkpoints) == 5


def test_the_base_that_is_named_is_looked_for_where_it_is_needed(run: Path, hub: LocalHub) -> None:
    found = find_trajectory(str(run), base="nobody/nothing")
    assert found.base_model == "nobody/nothing"
    assert found.checkpoints[0] == UNTOUCHED_BASE
    later = find_trajectory(str(run), base="nobody/nothing", min_step=20)
    assert (later.steps, later.base_model) == ((20, 30, 40), found.base_model)
    assert not hub.requests


def test_a_base_folder_is_the_same_from_everywhere(
    run: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "base", model(1))
    monkeypatch.chdir(tmp_path)
    assert find_trajectory(str(run), base="base").base_model == str(tmp_path / "base")


def test_a_base_that_cannot_be_one(run: Path, tmp_path: Path, model: Model) -> None:
    write(tmp_path / "whole", model(1, "step_1"))
    with pytest.raises(UnsupportedCheckpoint, match="holds an adapter, so it is no base"):
        find_trajectory(str(tmp_path / "whole"), base=str(run / "checkpoint-10"))


def test_a_whole_model_at_step_0_is_the_base(run: Path, model: Model, tmp_path: Path) -> None:
    write(run, model(1, "checkpoint-0"))
    found = find_trajectory(str(run))
    assert kinds(found) == {0: BASE, 10: ADAPTER, 20: ADAPTER, 30: ADAPTER, 40: ADAPTER}
    assert found.checkpoints[0] == UNTOUCHED_BASE
    assert isinstance(found.base_model, Checkpoint)
    assert (found.base_model.kind, found.base_model.path) == (BASE, str(run / "checkpoint-0"))
    base = write(tmp_path / "base", model(2))
    with pytest.raises(StepError, match=r"step 0 is already there, .*checkpoint-0; drop the base"):
        find_trajectory(str(run), base=str(base))


def test_whole_models_and_adapters_are_not_mixed(run: Path, model: Model, lines: Lines) -> None:
    for step in (50, 60):
        write(run, model(step, f"checkpoint-{step}"))
    found = find_trajectory(str(run), progress=lines)
    assert kinds(found) == {50: MODEL, 60: MODEL}
    assert len(lines.said) == 1
    assert lines.said[0] == (
        "warning: left out 4 of 6 checkpoints, which are adapters unlike the others, the first at step 10; "
        "to predict from the adapters, select their steps alone"
    )
    assert found.whole is not None
    assert [str(over) for over in found.whole.passed_over] == [
        f"{run}/checkpoint-{step}: an adapter, unlike other steps" for step in (10, 20, 30, 40)
    ]
    assert find_trajectory(str(run), max_step=40).steps == (0, 10, 20, 30, 40)
    with pytest.raises(
        StepError, match=r"step 10 does not go with step 50: .*checkpoint-10 is an adapter, and .*name steps"
    ):
        find_trajectory(str(run), steps=[10, 50])


def test_branches_of_both_kinds(
    hub: LocalHub, repo_id: str, model: Model, adapter: Model, lines: Lines
) -> None:
    hub.create_repo(repo_id)
    for step, files in {1: model(1), 2: model(2), 3: adapter(3)}.items():
        hub.commit(repo_id, files, revision=f"step_{step}")
    assert find_trajectory(repo_id, progress=lines).steps == (1, 2)
    assert lines.said[0].startswith("warning: left out 1 of 3 checkpoints, which are adapters")
    hub.commit(repo_id, {"pytorch_model.bin": b"pickle"}, revision="step_4")
    assert find_trajectory(repo_id, min_step=3).steps == (3,)


def test_steps_that_hold_both_say_which_is_taken(
    tmp_path: Path,
    model: Model,
    adapter: Model,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, adapter(step, f"run/global_step_{step}/actor/lora_adapter"))
    for step in (1, 2):
        write(tmp_path, model(step, f"run/global_step_{step}/actor/huggingface"))
    lines = Lines()
    found = find_trajectory(str(tmp_path / "run"), progress=lines)
    assert kinds(found) == {1: MODEL, 2: MODEL}
    place = f"{tmp_path}/run/global_step_3/actor/lora_adapter"
    assert lines.said == [f"warning: left out step 3, {place}: an adapter, unlike other steps"]
    monkeypatch.setattr("sys.argv", ["hubextrap", "steps", str(tmp_path / "run"), "--fast"])
    with pytest.raises(SystemExit):
        main()
    pattern = "global_step_{step}/actor/lora_adapter"
    assert capsys.readouterr().out.splitlines()[-1] == (
        "note: each of 2 steps from 1 to 2 holds an adapter beside a whole model, and hubextrap reads the "
        f"model; --pattern '{pattern}' takes the adapters"
    )
    assert kinds(find_trajectory(str(tmp_path / "run"), pattern=pattern)) == OF_ADAPTERS | {3: ADAPTER}
    assert [one.label for one in find_series(str(tmp_path / "run"))] == [
        "folders: global_step_{step}/actor/huggingface"
    ]


def test_one_folder_that_holds_both(tmp_path: Path, model: Model, adapter: Model) -> None:
    one = resolve_checkpoint(str(write(tmp_path / "step_1", model(1) | adapter(1))))
    assert one.kind == MODEL
    assert one.note == (
        "holds an adapter beside a whole model, and hubextrap reads the model, model.safetensors"
    )
    assert one.size == (tmp_path / "step_1" / "model.safetensors").stat().st_size


def test_what_is_listed_is_all_there_is(run: Path, tmp_path: Path, model: Model) -> None:
    base, listed = write(tmp_path / "base", model(1)), [(str(run / f"checkpoint-{n}"), n) for n in (10, 20)]
    assert kinds(pin_checkpoints(listed)) == {10: ADAPTER, 20: ADAPTER}
    for found in (pin_checkpoints([(str(base), 0), *listed]), pin_checkpoints(listed, base=str(base))):
        assert kinds(found) == {0: BASE, 10: ADAPTER, 20: ADAPTER}
        assert found.checkpoints[0] == UNTOUCHED_BASE
        path = found.base_model.path if isinstance(found.base_model, Checkpoint) else found.base_model
        assert path == str(base)
    with pytest.raises(StepError, match=r"step 10 does not go with step 30: .* list checkpoints of one kind"):
        pin_checkpoints([*listed, (str(base), 30)])


def cut_short(folder: Path) -> None:
    os.truncate(folder / FILE, (folder / FILE).stat().st_size - 10)


HALF_WRITTEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        lambda folder: (folder / CONFIG).unlink(),
        f"has no {CONFIG}, which the checkpoint before it has",
    ),
    "an empty config": (lambda folder: (folder / CONFIG).write_bytes(b""), f"has no {CONFIG}"),
    "empty": (lambda folder: (folder / FILE).write_bytes(b""), f"{FILE} is empty"),
    "cut short": (cut_short, f"{FILE} is cut short: "),
    "config alone": (lambda folder: (folder / FILE).unlink(), "no weights"),
}


@pytest.mark.parametrize(("break_it", "why"), HALF_WRITTEN.values(), ids=HALF_WRITTEN)
def test_a_half_written_adapter_at_the_end_is_left_out(
    run: Path, break_it: Callable[[Path], object], why: str, lines: Lines
) -> None:
    break_it(run / "checkpoint-40")
    assert find_trajectory(str(run), progress=lines).steps == (0, 10, 20, 30)
    assert len(lines.said) == 1
    assert lines.said[0].startswith("warning: left out step 40, ")
    assert why in lines.said[0]


def test_on_the_hub_too(hub: LocalHub, repo_id: str, adapter: Model) -> None:
    hub.create_repo(repo_id)
    for step in (1, 2, 3):
        hub.commit(repo_id, adapter(step), revision=f"step_{step}")
    hub.commit(repo_id, {FILE: adapter(4)[FILE]}, revision="step_4")
    assert find_trajectory(repo_id).steps == (0, 1, 2, 3)
    with pytest.raises(StepError, match=f"step 4 cannot be taken, .*: has no {CONFIG}"):
        find_trajectory(repo_id, steps=[1, 4])


def test_adapters_that_hold_the_same_weights(
    run: Path, hub: LocalHub, repo_id: str, adapter: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(run / "checkpoint-10" / FILE, run / "checkpoint-30" / FILE)
    monkeypatch.chdir(run / "checkpoint-10")  # the base has no folder, not the one that this is
    assert find_trajectory(str(run)).same_weights == ((10, 30),)
    hub.create_repo(repo_id)
    for step, seed in {1: 1, 2: 2, 3: 1}.items():
        hub.commit(repo_id, adapter(seed), revision=f"step_{step}")
    assert find_trajectory(repo_id).same_weights == ((1, 3),)


def test_pickles_of_adapters(adapter: Model, tmp_path: Path) -> None:
    """Reading names them; safetensors beside them are what counts."""
    alone = weights_of([("adapter_model.bin", 7), (CONFIG, 2)])
    both = weights_of([("adapter_model.bin", 7), (FILE, 5), (CONFIG, 2)])
    assert alone is not None
    assert both is not None
    assert (alone.kind, alone.files) == (ADAPTER, ("adapter_model.bin",))
    assert (both.kind, both.files, both.size) == (ADAPTER, (FILE,), 5)


def test_descriptions(run: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoint-10")
    write(run, model(1, "checkpoint-0", dtype="F16"))
    found = describe(find_trajectory(str(run)))
    first, second = found.checkpoints[:2]
    assert first == UNTOUCHED_BASE
    assert (second.kind, second.dtype) == (ADAPTER, "BF16")
    assert second.date is not None
    assert isinstance(found.base_model, Checkpoint)
    assert (found.base_model.kind, found.base_model.dtype) == (BASE, "F16")
    assert "<td>adapter</td>" in found._repr_html_()


def test_the_command(
    hub: LocalHub,
    repo_id: str,
    adapter: Model,
    model: Model,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.create_repo(repo_id)
    for step in (1, 2):
        hub.commit(repo_id, adapter(step), revision=f"step_{step}")
    hub.create_repo(f"{repo_id}-base")
    commit = hub.commit(f"{repo_id}-base", model(1))

    def said(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["hubextrap", "steps", repo_id, *options])
        with pytest.raises(SystemExit) as exited:
            main()
        assert exited.value.code == 0
        return capsys.readouterr().out

    _, header, first, second, _ = said().splitlines()
    assert header.split() == ["step", "checkpoint", "commit", "kind", "size", "dtype", "date"]
    assert first.split() == ["0", "the", "base", "model", "base"]
    assert second.split()[:2] == ["1", "step_1"]
    assert second.split()[3:7] == ["adapter", "245", "B", "BF16"]
    listed = json.loads(said("--json"))
    assert [one["kind"] for one in listed] == [BASE, ADAPTER, ADAPTER]
    assert (listed[0]["name"], listed[0]["path"], listed[0]["size"]) == ("the base model", "", None)
    base = json.loads(said("--json", "--base", f"{repo_id}-base"))[0]
    assert (base["step"], base["kind"], base["repo"], base["commit"]) == (0, BASE, f"{repo_id}-base", commit)
    assert base["dtype"] == "BF16"


def test_the_base_is_not_the_working_directory(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, model(1)))
    with pytest.raises(UnsupportedCheckpoint, match="the base model: step 0 of these adapters has no files"):
        open_source(UNTOUCHED_BASE)


def test_learning_rates_are_not_looked_for_beside_the_base(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(run, {"trainer_state.json": b"{}"}))
    with Run(find_trajectory(str(run))) as opened:
        assert opened.rates_beside == (None, "")


def test_the_folder_of_verls_adapters_is_no_run() -> None:
    places = [(step, f"/d/verl/grpo-7b/global_step_{step}/actor/lora_adapter") for step in (10, 20)]
    checkpoints = [Checkpoint(step, None, "", None, path, kind=ADAPTER) for step, path in places]
    assert run_name([UNTOUCHED_BASE, *checkpoints]) == "grpo-7b"
    assert run_name([UNTOUCHED_BASE, checkpoints[0]]) == "grpo-7b"
