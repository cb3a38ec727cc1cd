"""Runs in local folders: which subfolders are checkpoints, and of which series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Lines

from hubextrap.errors import (
    AmbiguousTrajectory,
    CorruptFile,
    ReferenceNotFound,
    StepError,
    TrajectoryError,
    UnsupportedCheckpoint,
)
from hubextrap.tensors import describe
from hubextrap.trajectory import (
    UNKNOWN_STEP,
    Trajectory,
    find_series,
    find_trajectory,
    pin_checkpoints,
    resolve_checkpoint,
)
from hubextrap.trajectory.weights import kind_of

CONFIG = {"config.json": b"{}", "tokenizer.json": b"{}"}
Model = Callable[..., dict[str, bytes]]


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def folders_of(trajectory: Trajectory, root: Path) -> dict[int, str]:
    return {c.step: Path(c.path).relative_to(root).as_posix() for c in trajectory.checkpoints}


def test_a_trainer_folder_with_a_final_model_at_its_root(
    tmp_path: Path, model: Model, safetensors_bytes: Callable[..., bytes]
) -> None:
    write(tmp_path, model(9) | model(1, "checkpoint-500") | model(2, "checkpoint-1000") | model(3, "logs"))
    found = find_trajectory(str(tmp_path))
    assert found.series == "checkpoint-{step}"
    assert found.steps == (500, 1000)
    assert found.base.path == str(tmp_path / "checkpoint-500")
    assert (found.base.repo, found.base.commit, found.base.size) == (None, None, len(safetensors_bytes()))


@pytest.mark.parametrize(
    ("files", "counted", "noted"),
    [
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors"], True),
        (["model.safetensors", "model-00001-of-00002.safetensors"], ["model.safetensors"], True),
        (
            ["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"],
            ["model.safetensors"],
            False,
        ),
        (["model.safetensors", "model.safetensors.index.fp16.json"], ["model.safetensors"], False),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"], False),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.bf16-00001-of-00002.safetensors",
                "model-00001-of-00002.fp16.safetensors",
                "model.safetensors.index.json",
                "model.safetensors.index.bf16.json",
                "consolidated-00001-of-00002.safetensors",
                "consolidated.safetensors.index.json",
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model.bin.index.json",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            False,
        ),
        (
            ["a.safetensors", "b.safetensors", "model.safetensors.index.json"],
            ["a.safetensors", "b.safetensors"],
            False,
        ),
        (["consolidated.safetensors", "a.safetensors"], ["a.safetensors"], False),
        (["consolidated.safetensors"], ["consolidated.safetensors"], False),
        (["pytorch_model.bin", "consolidated.00.pth", "model.gguf"], ["pytorch_model.bin"], False),
    ],
)
def test_the_size_is_that_of_what_transformers_loads(
    tmp_path: Path,
    safetensors_bytes: Callable[..., bytes],
    files: list[str],
    counted: list[str],
    noted: bool,
) -> None:
    """The same model may lie there in other formats and precisions, and then it counts once."""
    sizes = {}
    for number, file in enumerate(files):
        content = safetensors_bytes(number, "BF16" if file in counted else "F16") + b"\0" * number
        write(tmp_path, {f"step_1/{file}": content})
        sizes[file] = len(content)
    for found in (find_trajectory(str(tmp_path)).base, resolve_checkpoint(f"{tmp_path}/step_1")):
        assert found.size == sum(sizes[file] for file in counted)
        unread = found.note is not None and found.note.startswith("cannot be read: ")
        assert (found.note is not None and not unread) == noted
    described = describe(find_trajectory(str(tmp_path))).base
    assert (described.size, described.note) == (found.size, found.note)
    assert described.dtype == ("BF16" if counted[0].endswith(".safetensors") else None)


def test_transformers_loads_the_single_file(tmp_path: Path) -> None:
    """What the note says of a folder that holds both."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="1KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    single = {
        name: tensor * 0 + 1
        for shard in tmp_path.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
    }
    save_file(single, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert (AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight == 1).all()


def test_steps_are_numbers_not_positions_or_letters(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_1000") | model(2, "step_20") | model(3, "step_000300"))
    assert folders_of(find_trajectory(str(tmp_path)), tmp_path) == {
        20: "step_20",
        300: "step_000300",
        1000: "step_1000",
    }


def test_verl_converted_beside_raw_shards(tmp_path: Path, model: Model) -> None:
    raw = {f"global_step_{step}/actor/model_world_size_8_rank_0.pt": b"raw" for step in (100, 200, 300)}
    tokenizer = {f"global_step_300/actor/huggingface/{name}": content for name, content in CONFIG.items()}
    converted = model(1, "global_step_100/actor/huggingface") | model(2, "global_step_200/actor/huggingface")
    write(tmp_path, raw | tokenizer | converted)
    told = Lines()
    found = find_trajectory(str(tmp_path), progress=told)
    assert found.series == "global_step_{step}/actor/huggingface"
    assert folders_of(found, tmp_path) == {
        100: "global_step_100/actor/huggingface",
        200: "global_step_200/actor/huggingface",
    }
    assert len(told.said) == 1
    assert told.said[0].startswith("warning: left out step 300, ")
    with pytest.raises(StepError, match=r"global_step_300.*: no safetensors"):
        find_trajectory(str(tmp_path), steps=[100, 300])


def test_actor_and_critic_are_two_series(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "global_step_5/actor") | model(2, "global_step_5/critic"))
    with pytest.raises(AmbiguousTrajectory, match="2 series"):
        find_trajectory(str(tmp_path))
    chosen = find_trajectory(str(tmp_path), series="global_step_{step}/actor")
    assert folders_of(chosen, tmp_path) == {5: "global_step_5/actor"}


def test_the_outer_step_counts(tmp_path: Path, model: Model) -> None:
    for step in (300, 600):
        write(tmp_path, model(step, f"checkpoint-{step}"))
        write(tmp_path, {f"checkpoint-{step}/global_step{2 * step}/mp_rank_00_model_states.pt": b"state"})
    found = find_trajectory(str(tmp_path))
    assert folders_of(found, tmp_path) == {300: "checkpoint-300", 600: "checkpoint-600"}


def test_a_deepspeed_folder_alone_is_read_by_its_outer_step(tmp_path: Path) -> None:
    for step in (300, 600):
        write(tmp_path, {f"checkpoint-{step}/global_step{2 * step}/mp_rank_00_model_states.pt": b"state"})
    assert find_trajectory(str(tmp_path)).steps == (300, 600)


def test_modules_under_a_model_are_part_of_it(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_5") | model(2, "step_5/2_Dense") | {"step_5/optimizer.pt": b"x"})
    assert folders_of(find_trajectory(str(tmp_path)), tmp_path) == {5: "step_5"}


def test_folders_without_weights_and_predictions_are_left_out(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_1") | {f"step_2/{name}": content for name, content in CONFIG.items()})
    write(tmp_path, model(9, "step_9") | {"step_9/hubextrap.json": b"{}"})
    (tmp_path / "step_3").mkdir()
    told = Lines()
    assert find_trajectory(str(tmp_path), progress=told).steps == (1,)
    assert told.said == [
        f"{warned}left out step {step}, {tmp_path / f'step_{step}'}: {why}"
        for step, warned, why in (
            (9, "", "a prediction of hubextrap, not a checkpoint of the run"),
            (2, "warning: ", "no weights"),  # yet, it may be
        )
    ]


def test_pickles_are_left_out_where_others_can_be_read(tmp_path: Path, model: Model) -> None:
    pickles = {f"step_{step}/pytorch_model.bin": b"pickle" for step in (1, 2, 3)}
    write(tmp_path, model(1, "step_4") | model(2, "step_5") | pickles)
    told = Lines()
    assert find_trajectory(str(tmp_path), progress=told).steps == (4, 5)
    (line,) = told.said
    assert line.startswith("left out 3 steps (1, 2, 3): pytorch_model.bin is a pickle, and pickles are never")
    assert "for step in step_1 step_2 step_3; do python -c " in line
    assert line.endswith(f' {tmp_path}/"$step"; done')


def test_pickles_alone_stay(tmp_path: Path) -> None:
    """Who reads them says what to do."""
    write(tmp_path, {f"step_{step}/pytorch_model.bin": b"pickle" for step in (1, 2)})
    found = find_trajectory(str(tmp_path))
    assert (found.steps, {one.weights for one in found.checkpoints}) == ((1, 2), {"pickle"})


def test_traps_are_not_steps(tmp_path: Path, model: Model) -> None:
    for name in ("checkpoint_pct010", "step01-sft", "tokens252B", "2BT"):
        write(tmp_path, model(1, name))
    with pytest.raises(
        TrajectoryError,
        match=r"no checkpoints found; none .* says a step and holds weights: 2BT/, checkpoint_pct010/, "
        r"step01-sft/, tokens252B/. Give a pattern",
    ):
        find_trajectory(str(tmp_path))
    assert find_trajectory(str(tmp_path), pattern="checkpoint_pct{step}", step_scale=2.5).steps == (25,)


def test_two_runs_are_never_mixed(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "global_step_10") | model(2, "global_step_20") | model(3, "new_global_step_10"))
    with pytest.raises(AmbiguousTrajectory) as caught:
        find_trajectory(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: there are 2 series of checkpoints; choose one by its name, with "
        "`trajectory.steps.series` in a recipe, or --series:\n"
        "  folders: global_step_{step}      2 checkpoints, steps 10 to 20\n"
        "  folders: new_global_step_{step}  1 checkpoint, step 10"
    )
    assert find_trajectory(str(tmp_path), series="global_step_{step}").steps == (10, 20)
    assert find_trajectory(str(tmp_path), series="folders: new_global_step_{step}").steps == (10,)
    assert find_trajectory(str(tmp_path), series="new").steps == (10,)
    assert find_trajectory(str(tmp_path), pattern="global_step_{step}").steps == (10, 20)
    with pytest.raises(AmbiguousTrajectory):
        find_trajectory(str(tmp_path), series="folders")
    with pytest.raises(TrajectoryError, match=r"no series 'old'; there are:\n  folders: global_"):
        find_trajectory(str(tmp_path), series="old")


def test_what_is_found_is_listed(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "a/step_1") | model(2, "a/step_2") | model(3, "b/step_1"))
    assert [(one.label, len(one.checkpoints)) for one in find_series(str(tmp_path))] == [
        ("folders: a/step_{step}", 2),
        ("folders: b/step_{step}", 1),
    ]


def test_bounds_and_steps(tmp_path: Path, model: Model) -> None:
    for step in (0, 10, 20, 30, 40, 55):
        write(tmp_path, model(step, f"step_{step}"))
    root = str(tmp_path)
    assert find_trajectory(root, min_step=10, max_step=40).steps == (10, 20, 30, 40)
    assert find_trajectory(root, steps=[55, 0]).steps == (0, 55)
    with pytest.raises(StepError, match=r"not there; .* 10, 20, 30, 40") as caught:
        find_trajectory(root, steps=[20, 24])
    assert caught.value.step == 24
    with pytest.raises(StepError, match=r"not there up to 40; .* 10, 20, 30, 40") as caught:
        find_trajectory(root, steps=[55], max_step=40)
    assert caught.value.step == 55
    with pytest.raises(StepError, match=r"no step from 41 up to 54; .* has 0 to 55$"):
        find_trajectory(root, min_step=41, max_step=54)


def test_a_step_that_is_there_twice(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_10") | model(2, "step_010"))
    with pytest.raises(StepError, match=r"there twice, .*step_010 and .*step_10") as caught:
        find_trajectory(str(tmp_path))
    assert caught.value.step == 10


def test_step_scale(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "epoch_1") | model(2, "epoch_2"))
    assert find_trajectory(str(tmp_path), pattern="epoch_{step}", step_scale=37.5).steps == (38, 75)
    with pytest.raises(StepError, match="step 0 is there twice"):
        find_trajectory(str(tmp_path), pattern="epoch_{step}", step_scale=0.1)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(StepError, match=f"step_scale {scale}: .* a number above 0"):
            find_trajectory(str(tmp_path), pattern="epoch_{step}", step_scale=scale)


def test_a_base_from_elsewhere(tmp_path: Path, model: Model) -> None:
    run, base = write(tmp_path / "run", model(1, "step_10")), write(tmp_path / "base", model(0))
    found = find_trajectory(str(run), base=str(base))
    assert found.steps == (0, 10)
    assert found.base.path == str(base)
    write(run, model(2, "step_0"))
    with pytest.raises(StepError, match=r"step 0 is already there, .*step_0; drop the base"):
        find_trajectory(str(run), base=str(base))
    assert find_trajectory(str(run), base=str(base), min_step=1).base.path == str(base)


def test_linked_checkpoints_and_loops(tmp_path: Path, model: Model) -> None:
    write(tmp_path / "elsewhere", model(1))
    write(tmp_path / "run", model(2, "step_2"))
    (tmp_path / "run" / "step_1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "step_2" / "loop").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "latest").symlink_to(tmp_path / "run" / "step_2")
    (tmp_path / "run" / "step_2" / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    assert find_trajectory(str(tmp_path / "run")).steps == (1, 2)


def test_empty_and_missing_folders(tmp_path: Path, safetensors_bytes: Callable[..., bytes]) -> None:
    with pytest.raises(TrajectoryError, match=r"no checkpoints found; there is no folder in it"):
        find_trajectory(str(tmp_path))
    write(tmp_path, {"one/model.safetensors": safetensors_bytes(), "one/config.json": b"{}"})
    with pytest.raises(TrajectoryError, match=r"it holds the weights of one model itself; name the folder"):
        find_trajectory(str(tmp_path / "one"))
    write(tmp_path, {"run/step_7/actor/model.safetensors": safetensors_bytes(), "run/step_8/notes": b""})
    for step in ("step_7", "step_8"):
        with pytest.raises(
            TrajectoryError, match=f"{step} says a step itself; .*name the folder that holds the"
        ):
            find_trajectory(str(tmp_path / "run" / step))
    for name, instead in (
        ("r.yaml", "hubextrap run"),
        ("s.safetensors", "as --scan"),
        ("README", "the run$"),
    ):
        (tmp_path / "one" / name).touch()
        with pytest.raises(ReferenceNotFound, match=f"this is a file; .*{instead}"):
            find_trajectory(str(tmp_path / "one" / name))
    with pytest.raises(ReferenceNotFound, match="no such local folder"):
        find_trajectory(str(tmp_path / "missing"))
    with pytest.raises(UnsupportedCheckpoint, match=r"no weight files in it \(nothing\)"):
        resolve_checkpoint(str(tmp_path))


def test_one_checkpoint(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "step_10/actor/huggingface") | model(2, "final"))
    assert resolve_checkpoint(str(tmp_path / "step_10/actor/huggingface")).step == 10
    assert resolve_checkpoint(str(tmp_path / "final")).step == UNKNOWN_STEP
    assert resolve_checkpoint(str(tmp_path / "final"), step=7).step == 7


def test_a_list_of_checkpoints(tmp_path: Path, model: Model) -> None:
    write(tmp_path, model(1, "late") | model(2, "early") | model(3, "base"))
    late, early, base = (str(tmp_path / name) for name in ("late", "early", "base"))
    found = pin_checkpoints([(late, 90), (early, 40)], base=base)
    assert [(c.step, c.path) for c in found.checkpoints] == [(0, base), (40, early), (90, late)]
    with pytest.raises(StepError, match=r"step 40 is there twice, .*early and .*late"):
        pin_checkpoints([(late, 40), (early, 40)])
    with pytest.raises(StepError, match=r"steps count from 0: .*late at step -5"):
        pin_checkpoints([(late, -5)])
    with pytest.raises(StepError, match="the list of checkpoints is empty"):
        pin_checkpoints([])


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
def test_describe_reads_the_dtype_of_most_bytes(
    tmp_path: Path, dtype: str, model: Model, safetensors_bytes: Callable[..., bytes]
) -> None:
    write(tmp_path, model(1, "step_1", dtype))
    (checkpoint,) = describe(find_trajectory(str(tmp_path))).checkpoints
    assert checkpoint.dtype == dtype
    assert checkpoint.size == len(safetensors_bytes(1, dtype))
    assert checkpoint.date is not None
    assert (
        abs(checkpoint.date.timestamp() - (tmp_path / "step_1" / "model.safetensors").stat().st_mtime) < 1e-3
    )


def test_describe_knows_no_dtype_of_a_pickle(tmp_path: Path) -> None:
    write(tmp_path, {"step_1/pytorch_model.bin": b"pickle"})
    (checkpoint,) = describe(find_trajectory(str(tmp_path))).checkpoints
    assert (checkpoint.dtype, checkpoint.size) == (None, 6)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 16, (4).to_bytes(8, "little") + b"[1]x", b"\2" + bytes(7) + b"[]"]
)
def test_describe_names_a_corrupt_file(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"step_1/model.safetensors": content})
    with pytest.raises(CorruptFile, match=r"step_1: the header of model.safetensors"):
        describe(find_trajectory(str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("model-00001-of-00002.safetensors", "safetensors"),
        ("consolidated.safetensors", "safetensors"),
        ("shard-00001-model-00001-of-00002.safetensors", "sharded safetensors"),
        ("adapter_model.safetensors", "adapter"),
        ("adapter_model.bin", "adapter"),
        ("pytorch_model-00001-of-00002.bin", "other"),
        ("model_world_size_8_rank_0.pt", "FSDP shards"),
        ("__0_0.distcp", "torch DCP"),
        (".metadata", "torch DCP"),
        ("model.gguf", "other"),
        ("mp_rank_00_model_states.pt", "other"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "other"),
        ("model_optim_rng.pt", "other"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", None),
        ("extra_state_world_size_8_rank_0.pt", None),
        ("data.pt", None),
        ("common.pt", None),
        ("train_dataloader.pt", None),
        ("optimizer.pt", None),
        ("optim_world_size_8_rank_0.pt", None),
        ("training_args.bin", None),
        ("scheduler.pt", None),
        ("rng_state_0.pth", None),
        ("config.json", None),
        ("model.safetensors.index.json", None),
        ("tokenizer.model", None),
    ],
)
def test_kinds_of_weights(file: str, kind: str | None) -> None:
    assert kind_of(f"some/folder/{file}") == kind


def test_the_bundled_run(demo_data: Path) -> None:
    found = find_trajectory(str(demo_data / "rlvr-C"), max_step=200)
    assert found.steps == (0, 40, 80, 100, 120, 160, 200)
    assert {c.dtype for c in describe(found).checkpoints} == {"F32"}


def test_the_full_runs(rlvr: Path) -> None:
    assert find_trajectory(str(rlvr / "rlvr-C")).steps == tuple(range(0, 501, 20))
    assert find_trajectory(str(rlvr / "rlvr-A")).steps == (0, *range(40, 481, 40), 500)
    with pytest.raises(AmbiguousTrajectory, match=r"rlvr-C/step_\{step\} +26 checkpoints"):
        find_trajectory(str(rlvr))
