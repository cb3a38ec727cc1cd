"""How trainers lay out a run, by their documentation: which folders are the series, and in which form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from harness import Lines
from safetensors.numpy import save

from hubextrap.errors import AmbiguousTrajectory, StepError, TrajectoryError
from hubextrap.localhub import LocalHub
from hubextrap.trajectory import find_trajectory

ZIP = b"PK\x05\x06" + bytes(18)
"""The smallest zip file that is whole."""
Files = dict[str, bytes]


def whole(folder: str, seed: int = 0) -> Files:
    weights = save({"model.norm.weight": np.full(4, seed, np.float32)}, {"format": "pt"})
    return {f"{folder}/model.safetensors": weights} | beside(folder)


def indexed(folder: str) -> Files:
    shard = "model-00001-of-00001.safetensors"
    files = {
        f"{folder}/{shard}": whole("x")["x/model.safetensors"],
        f"{folder}/model.safetensors.index.json": b"{}",
    }
    return files | beside(folder)


def beside(folder: str) -> Files:
    return {f"{folder}/config.json": b"{}", f"{folder}/tokenizer.json": b"{}"}


def fsdp(folder: str, world: int = 2) -> Files:
    """As verl and SkyRL leave it: a file of each rank, and configuration and tokenizer apart."""
    ranks = {
        f"{folder}/{what}_world_size_{world}_rank_{rank}.pt": ZIP
        for what in ("model", "optim", "extra_state")
        for rank in range(world)
    }
    return ranks | beside(f"{folder}/huggingface")


def dcp(folder: str) -> Files:
    return {f"{folder}/{name}": b"x" for name in (".metadata", "__0_0.distcp", "__1_0.distcp")}


def adapter(folder: str) -> Files:
    return {f"{folder}/adapter_model.safetensors": whole("x")["x/model.safetensors"]} | {
        f"{folder}/adapter_config.json": b"{}"
    }


def sharded(folder: str) -> Files:
    shard = whole("x")["x/model.safetensors"]
    return {f"{folder}/shard-0000{rank}-model-00001-of-00001.safetensors": shard for rank in (1, 2)} | {
        f"{folder}/.hf_metadata/config.json": b"{}"
    }


def megatron(folder: str) -> Files:
    return dcp(folder) | {f"{folder}/common.pt": ZIP, f"{folder}/metadata.json": b"{}"}


def zero(folder: str) -> Files:
    optim = f"{folder}/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    return {f"{folder}/mp_rank_00_model_states.pt": ZIP, optim: ZIP}


def at_steps(make: Callable[[int], Files], steps: tuple[int, ...] = (10, 20, 30)) -> Files:
    return {path: content for step in steps for path, content in make(step).items()}


def state(folder: str) -> Files:
    """What transformers' Trainer keeps to go on."""
    names = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json")
    return {f"{folder}/{name}": ZIP for name in names}


LAYOUTS: Mapping[str, tuple[Files, str, tuple[int, ...], str]] = {
    "verl": (
        at_steps(lambda n: fsdp(f"global_step_{n}/actor") | {f"global_step_{n}/data.pt": ZIP}),
        "global_step_{step}/actor", (10, 20, 30), "FSDP shards",
    ),
    "verl, converted": (
        at_steps(lambda n: fsdp(f"global_step_{n}/actor") | whole(f"global_step_{n}/actor/huggingface", n)),
        "global_step_{step}/actor/huggingface", (10, 20, 30), "safetensors",
    ),
    "verl, one step converted": (
        at_steps(lambda n: fsdp(f"global_step_{n}/actor")) | whole("global_step_30/actor/huggingface"),
        "global_step_{step}/actor", (10, 20, 30), "FSDP shards",
    ),
    "verl, LoRA": (
        at_steps(lambda n: fsdp(f"global_step_{n}/actor") | adapter(f"global_step_{n}/actor/lora_adapter")),
        "global_step_{step}/actor/lora_adapter", (0, 10, 20, 30), "adapter",
    ),
    "SkyRL": (
        at_steps(
            lambda n: fsdp(f"global_step_{n}/policy", 4)
            | {f"global_step_{n}/data.pt": ZIP, f"global_step_{n}/trainer_state.pt": ZIP}
        ),
        "global_step_{step}/policy", (10, 20, 30), "FSDP shards",
    ),
    "torchtitan": (
        at_steps(lambda n: dcp(f"checkpoint/step-{n}")), "checkpoint/step-{step}", (10, 20, 30), "torch DCP",
    ),
    "accelerate": (
        at_steps(
            lambda n: dcp(f"checkpoint-{n}/pytorch_model_fsdp_0") | dcp(f"checkpoint-{n}/optimizer_0")
            | state(f"checkpoint-{n}")
        ),
        "checkpoint-{step}", (10, 20, 30), "torch DCP",
    ),
    "NeMo, consolidated": (
        at_steps(
            lambda n: sharded(f"epoch_{n // 20}_step_{n}/model")
            | indexed(f"epoch_{n // 20}_step_{n}/model/consolidated") | dcp(f"epoch_{n // 20}_step_{n}/optim")
        ),
        "epoch_{epoch}_step_{step}/model/consolidated", (10, 20, 30), "safetensors",
    ),
    "NeMo, consolidated at the end": (
        at_steps(lambda n: sharded(f"epoch_0_step_{n}/model"))
        | indexed("epoch_0_step_30/model/consolidated"),
        "epoch_0_step_{step}/model", (10, 20, 30), "sharded safetensors",
    ),
    "NeMo RL": (
        at_steps(lambda n: dcp(f"step_{n}/policy/weights") | dcp(f"step_{n}/policy/optimizer")),
        "step_{step}/policy/weights", (10, 20, 30), "torch DCP",
    ),
    "prime-rl": (
        at_steps(
            lambda n: indexed(f"weights/step_{n}") | dcp(f"checkpoints/step_{n}/trainer")
            | {f"checkpoints/step_{n}/orchestrator/progress.pt": ZIP}
        ) | whole("broadcasts/step_29") | whole("broadcasts/step_30"),
        "weights/step_{step}", (10, 20, 30), "safetensors",
    ),
    "prime-rl, without weights": (
        at_steps(
            lambda n: dcp(f"checkpoints/step_{n}/trainer")
            | {f"checkpoints/step_{n}/trainer/dataloader/rank_0.pt": ZIP}
            | {f"checkpoints/step_{n}/orchestrator/progress.pt": ZIP}
        ),
        "checkpoints/step_{step}/trainer", (10, 20, 30), "torch DCP",
    ),
    "slime": (
        at_steps(lambda n: megatron(f"iter_{n:07}")) | at_steps(lambda n: whole(f"hf/{n}", n), (9, 19)),
        "hf/{step}", (9, 19), "safetensors",
    ),
    "slime, FSDP": (
        at_steps(
            lambda n: dcp(f"iter_{n:07}/model") | dcp(f"iter_{n:07}/optimizer") | {f"iter_{n:07}/rng.pt": ZIP}
        ),
        "iter_{step}/model", (10, 20, 30), "torch DCP",
    ),
    "OpenRLHF": (
        at_steps(
            lambda n: zero(f"_actor/global_step{n}") | zero(f"_critic/global_step{n}")
            | whole(f"global_step{n}_hf", n)
        ),
        "global_step{step}_hf", (10, 20, 30), "safetensors",
    ),
    "AReaL": (
        whole("epoch0epochstep9globalstep9", 1) | whole("epoch0epochstep19globalstep19", 2)
        | whole("epoch1epochstep4globalstep29", 3) | {"recover_checkpoint/model.pt": ZIP},
        "epoch{epoch}epochstep{epochstep}globalstep{step}", (9, 19, 29), "safetensors",
    ),
    "axolotl": (
        at_steps(lambda n: whole(f"checkpoint-{n}", n) | state(f"checkpoint-{n}")) | whole("merged"),
        "checkpoint-{step}", (10, 20, 30), "safetensors",
    ),
    "axolotl, LoRA on DeepSpeed": (
        at_steps(lambda n: adapter(f"checkpoint-{n}") | zero(f"checkpoint-{n}/global_step{n}")),
        "checkpoint-{step}", (0, 10, 20, 30), "adapter",
    ),
    "ms-swift": (
        at_steps(
            lambda n: whole(f"v0-20250101-101010/checkpoint-{n}", n)
            | state(f"v0-20250101-101010/checkpoint-{n}")
        ),
        "v0-20250101-101010/checkpoint-{step}", (10, 20, 30), "safetensors",
    ),
    "counters within an epoch": (
        at_steps(lambda n: whole(f"checkpoint-epoch{n // 10}-step{40 * n}", n)),
        "checkpoint-epoch{epoch}-step{step}", (400, 800, 1200), "safetensors",
    ),
}  # fmt: skip
"""Its files, and what of them is the run: the series, its steps, the form of its weights."""


def put(root: Path, files: Files) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_which_folders_are_the_run(tmp_path: Path) -> None:
    """All in one test: a listing each."""
    for number, (name, (files, series, steps, form)) in enumerate(LAYOUTS.items()):
        found = find_trajectory(put(tmp_path / str(number), files))
        assert (name, found.series, found.steps) == (name, series, steps)
        assert found.last.weights == form, name


@pytest.mark.parametrize("layout", ["accelerate", "NeMo, consolidated", "prime-rl", "AReaL", "verl"])
def test_the_same_on_the_hub(hub: LocalHub, repo_id: str, layout: str) -> None:
    files, series, steps, form = LAYOUTS[layout]
    hub.create_repo(repo_id)
    hub.commit(repo_id, files)
    found = find_trajectory(repo_id)
    assert (found.series, found.steps, found.last.weights) == (series, steps, form)


@pytest.mark.parametrize("form", ["FSDP shards", "torch DCP"])
def test_branches_in_slices(hub: LocalHub, repo_id: str, form: str) -> None:
    """A checkpoint at the root of each branch: folders in it belong to it."""
    hub.create_repo(repo_id)
    for step in (10, 20):
        made = fsdp("r") if form == "FSDP shards" else dcp("r/pytorch_model_fsdp_0")
        files = {path.removeprefix("r/"): content + bytes(step) for path, content in made.items()}
        hub.commit(repo_id, files, revision=f"step_{step}")
    found = find_trajectory(repo_id)
    assert (found.steps, {one.weights for one in found.checkpoints}) == ((10, 20), {form})
    assert found.same_weights == ()


def test_links_to_steps_are_no_steps(tmp_path: Path) -> None:
    run = put(tmp_path / "run", at_steps(lambda n: whole(f"step_{n}", n) | zero(f"step_{n}/global_step{n}")))
    (run / "LATEST").symlink_to("step_30")
    (run / "LOWEST_VAL").symlink_to(run / "step_20")
    (run / "best_step_20").symlink_to("step_20")
    found = find_trajectory(run)
    assert (found.series, found.steps, found.same_weights) == ("step_{step}", (10, 20, 30), ())


def test_one_counter_has_to_rise_over_all(tmp_path: Path) -> None:
    """Steps that begin again in each epoch, seeds, epochs that fall as steps rise: there may be two runs."""
    for number, names in enumerate(
        (("epoch_0_step_5", "epoch_1_step_5", "epoch_1_step_9"), ("seed1_step_5", "seed2_step_9"),
         ("epoch_1_step_5", "epoch_0_step_9"))
    ):  # fmt: skip
        root = tmp_path / str(number)
        for seed, name in enumerate(names):
            put(root, whole(name, seed))
        with pytest.raises(AmbiguousTrajectory, match="there are 2 series of checkpoints"):
            find_trajectory(root)


@pytest.mark.parametrize(
    ("names", "pattern", "steps"),
    [
        (("seed1_step_5", "seed2_step_9"), "seed{word}_step_{step}", (5, 9)),
        (("epoch_0_step_9", "epoch_1_step_5", "epoch_2_step_7"), "epoch_{epoch}_step_{step}", (5, 7, 9)),
        (("e1-loss0.5-step_5", "e2-loss0.25-step_9"), "e{word}-loss0.{word2}-step_{step}", (5, 9)),
    ],
)
def test_the_pattern_that_is_printed_works(
    tmp_path: Path, names: tuple[str, ...], pattern: str, steps: tuple[int, ...]
) -> None:
    for seed, name in enumerate(names):
        put(tmp_path, whole(name, seed))
    with pytest.raises(AmbiguousTrajectory) as caught:
        find_trajectory(tmp_path)
    assert str(caught.value).endswith(f"--pattern '{pattern}'")
    assert find_trajectory(tmp_path, pattern=pattern).steps == steps


def test_no_pattern_is_printed_that_would_not_work(tmp_path: Path) -> None:
    put(
        tmp_path,
        whole("seed1_step_5") | whole("seed2_step_5", 1) | whole("seed1_step_9") | whole("seed2_step_9", 1),
    )
    with pytest.raises(AmbiguousTrajectory) as caught:
        find_trajectory(tmp_path)
    assert "--pattern" not in str(caught.value)


def test_bare_numbers_where_nothing_else_says_a_step(tmp_path: Path) -> None:
    numbers = put(tmp_path / "a", whole("10", 1) | whole("20", 2) | whole("final", 3))
    assert (find_trajectory(numbers).series, find_trajectory(numbers).steps) == ("{step}", (10, 20))
    beside = put(tmp_path / "b", whole("10", 1) | whole("20", 2) | whole("step_5", 3) | whole("step_6", 4))
    assert find_trajectory(beside).series == "step_{step}"
    alone = put(tmp_path / "c", whole("10", 1))
    with pytest.raises(TrajectoryError, match="none of these names says a step"):
        find_trajectory(alone)


def _without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(ZIP[:-20] + b"x" * 99)


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (
            fsdp,
            _without("model_world_size_2_rank_1.pt"),
            "model_world_size_2_rank_1.pt is not there, and other",
        ),
        (fsdp, _cut("model_world_size_2_rank_0.pt"), "model_world_size_2_rank_0.pt is cut short: the end of"),
        (
            fsdp,
            _without("huggingface/config.json"),
            "has no huggingface/config.json, which the checkpoint before",
        ),
        (dcp, _without(".metadata"), "has __0_0.distcp and no .metadata, which is written last"),
        (sharded, _without(".hf_metadata/config.json"), "has no .hf_metadata/config.json, which"),
    ],
)
def test_slices_that_are_being_written(
    tmp_path: Path, lines: Lines, make: Callable[[str], Files], change: Callable[[Path], None], said: str
) -> None:
    put(tmp_path, at_steps(lambda n: make(f"step_{n}")))
    change(tmp_path / "step_30")
    assert find_trajectory(tmp_path, progress=lines).steps == (10, 20)
    assert any(
        f"left out step 30, which is not whole yet: {tmp_path}/step_30: {said}" in line for line in lines.said
    )
    with pytest.raises(StepError, match="step 30 cannot be taken"):
        find_trajectory(tmp_path, steps=[10, 30])


def test_fewer_ranks_than_before_are_whole(tmp_path: Path, lines: Lines) -> None:
    put(tmp_path, fsdp("step_1", 4) | fsdp("step_2", 2) | fsdp("step_3", 1))
    assert find_trajectory(tmp_path, progress=lines).steps == (1, 2, 3)
    assert not any("not whole" in line for line in lines.said)


def test_equal_slices_are_told(tmp_path: Path, hub: LocalHub, repo_id: str) -> None:
    """By their bytes, in a folder and from a listing; torch's metadata has a number for each save."""
    files = at_steps(lambda n: fsdp(f"step_{n}"), (1, 2)) | {
        f"step_3/model_world_size_2_rank_{rank}.pt": ZIP[:-2] + bytes(2) + ZIP for rank in (0, 1)
    }
    files |= at_steps(lambda n: dcp(f"d/step_{n}"), (1, 2)) | {"d/step_2/.metadata": b"y"}
    hub.create_repo(repo_id)
    hub.commit(repo_id, files)
    for place in (str(put(tmp_path, files)), repo_id):
        assert find_trajectory(place, series="step_{step}").same_weights == ((1, 2),)
        assert find_trajectory(place, series="d/step_{step}").same_weights == ((1, 2),)
