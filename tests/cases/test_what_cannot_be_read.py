"""Runs, or steps of them, in forms that are not read: named with the commands that convert them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from case_runs import files_of, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from harness import Lines

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.tensors.weights import check_files
from hubextrap.trajectory import find_trajectory

Cli = Callable[..., Ended]
MEGATRON = (".metadata", "__0_0.distcp", "common.pt", "metadata.json")
ZERO = ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
ZERO_3 = tuple(
    f"zero_pp_rank_{rank}_mp_rank_00_{what}_states.pt" for rank in (0, 1) for what in ("model", "optim")
)


def touch(root: Path, folders: Iterable[str], names: Iterable[str]) -> Path:
    for folder in folders:
        for name in names:
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(b"x" * len(folder))
    return root


def pasted(line: str, tmp_path: Path) -> list[list[str]]:
    """What a shell runs of a line: the words of each command, of programs that only write them down."""
    programs, log = tmp_path / "programs", tmp_path / "log"
    programs.mkdir(exist_ok=True)
    for name in ("python", "uv", "hf", "accelerate"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\037" {name} "$@" >> {log}\necho >> {log}\n')
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "BASE": "/models/base"}
    subprocess.run(["bash", "-euc", line], env=environment, cwd=tmp_path, check=True, timeout=20)
    return [command.split("\x1f")[:-1] for command in log.read_text().splitlines()]


class Form(NamedTuple):
    """How a trainer leaves a run that is not read."""

    folder: str
    names: tuple[str, ...]
    form: str
    command: str


FORMS = {
    "verl": Form(
        "global_step_{}/actor/dist_ckpt",
        MEGATRON,
        "Megatron",
        "python -m verl.model_merger merge --backend megatron --local_dir {}/global_step_10/actor "
        "--target_dir {}/global_step_10/actor/huggingface",
    ),
    "slime": Form(
        "iter_00000{}",
        MEGATRON,
        "Megatron",
        "python tools/convert_torch_dist_to_hf.py --input-dir {}/iter_0000010 "
        "--output-dir {}/iter_0000010-hf --origin-hf-dir /models/base",
    ),
    "Megatron-LM": Form(
        "iter_00000{}",
        ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"),
        "Megatron",
        "python tools/convert_torch_dist_to_hf.py --input-dir {}/iter_0000010 "
        "--output-dir {}/iter_0000010-hf --origin-hf-dir /models/base",
    ),
    "Megatron Bridge": Form(
        "iter_00000{}",
        (*MEGATRON, "run_config.yaml", "train_state.pt"),
        "Megatron Bridge",
        "python -c import·sys;·from·megatron.bridge·import·AutoBridge;"
        "·AutoBridge.from_hf_pretrained(sys.argv[1]).export_ckpt(*sys.argv[2:]) /models/base "
        "{}/iter_0000010 {}/iter_0000010-hf",
    ),
    "NeMo RL": Form(
        "step_{}/policy/weights/iter_0000000",
        MEGATRON,
        "Megatron",
        "uv run --extra mcore python examples/converters/convert_megatron_to_hf.py "
        "--config {}/step_10/config.yaml --megatron-ckpt-path {}/step_10/policy/weights/iter_0000000 "
        "--hf-ckpt-path {}/step_10/hf",
    ),
    "OpenRLHF": Form(
        "_actor/global_step{}",
        ZERO,
        "DeepSpeed ZeRO",
        "python -m deepspeed.utils.zero_to_fp32 {}/_actor {}/_actor/global_step10_hf --tag global_step10 "
        "--safe_serialization",
    ),
    "Trainer on ZeRO-3": Form(
        "checkpoint-{0}/global_step{0}",
        ZERO_3,
        "DeepSpeed ZeRO",
        "python -m deepspeed.utils.zero_to_fp32 {}/checkpoint-10/global_step10/.. "
        "{}/checkpoint-10/global_step10/.. --tag global_step10 --safe_serialization",
    ),
}
"""A step's folder, what lies there, what it is called, and the command for step 10: its words, in which a
space is ``·``."""


@pytest.mark.parametrize("trainer", FORMS)
def test_each_trainer_has_its_command(tmp_path: Path, cli: Cli, trainer: str) -> None:
    """`steps` shows the form; it and `plan` say how to convert, in one line that a shell runs."""
    folder, names, form, command = FORMS[trainer]
    run = touch(tmp_path / "a run", (folder.format(step) for step in (10, 20)), names)
    listed = cli("steps", run)
    assert listed.code == 0
    assert [form in line for line in listed.out.splitlines()[2:4]] == [True, True]
    planned = cli("plan", recipe_for(run, tmp_path / "r.yaml"), "--out", "out")
    assert planned.code == 1
    loops = {
        line.strip() for text in (listed.out, planned.out) for line in text.splitlines() if "; done" in line
    }
    (loop,) = loops
    ran = pasted(loop, tmp_path)
    assert len(ran) == 2
    assert ran[0] == [word.replace("{}", str(run)).replace("·", " ") for word in command.split(" ")]
    sources = [
        Path(word) for word in ran[1] if word.startswith(str(run)) and "hf" not in word.rpartition("/")[2]
    ]
    assert any(path.is_dir() for path in sources)


def test_what_was_converted_so_is_found(tmp_path: Path) -> None:
    """In the folder that the command names."""
    for trainer, (folder, names, _, command) in FORMS.items():
        run = touch(tmp_path / trainer, (folder.format(step) for step in (10, 20)), names)
        made = command.split(" {}")[1:]
        place = next((one for one in made if one.split(" ")[0].endswith(("hf", "huggingface", "/.."))), "")
        for step in (10, 20):
            inner = place.split(" ")[0].replace("10", str(step))  # the run's own place may hold a 10
            where = Path(os.path.normpath(f"{run}{inner}"))
            write_model(where, tiny(step))
        found = find_trajectory(run)
        assert (trainer, found.steps, found.last.weights) == (trainer, (10, 20), "safetensors")


def test_states_are_never_checkpoints(tmp_path: Path) -> None:
    """Beside weights or alone, whatever their suffix is."""
    run = write_run(tmp_path / "run")
    states = ("optim/__0_0.distcp", "optim/.metadata", "optimizer_0/__0_0.distcp", "optimizer/__0_0.distcp")
    states += (
        "orchestrator/progress.pt",
        "dataloader/rank_0.pt",
        "rng/rng_dp_rank_0.pt",
        "step_scheduler.pt",
    )
    states += ("optim_world_size_8_rank_0.pt", "extra_state_world_size_8_rank_0.pt", "data.pt", "common.pt")
    states += (ZERO[1], "train_dataloader.pt", "trainer_state.pt")
    touch(run, ("step_100", "step_200", "step_300"), states)
    lines = Lines()
    assert find_trajectory(run, progress=lines).steps == (100, 200)
    assert lines.said == [f"warning: left out step 300, {run / 'step_300'}: no weights"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "pytorch_model.bin",
            "is a pickle, and pickles are never loaded because they can run code; convert it: for",
        ),
        (
            "model.pt",
            "is a pickle, and pickles are never loaded because they can run code; save a whole model with",
        ),
        ("tf_model.h5", "is of another format, TensorFlow; convert it: for step in FOLDER; do python"),
        ("model.gguf", "is of another format, GGUF; convert it: for step in FOLDER; do python"),
        (
            "model_world_size_1_rank_0.pt",
            "is of another format, FSDP shards; convert it: for step in FOLDER; do",
        ),
    ],
)
def test_who_loads_a_folder_itself_is_told_too(file: str, said: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=f"^here: {file} {said}"):
        check_files([file, "optimizer.pt", "config.json"], "here")


def test_branches_of_pickles_are_left_out(tmp_path: Path, cli: Cli, hub: LocalHub, repo_id: str) -> None:
    """Some revisions hold safetensors, others pickles alone: one note, and the rest is the run, in order."""
    hub.create_repo(repo_id)
    for step in (0, 1, 2, 512, 1000, 14300):
        files = files_of(
            write_model(tmp_path / f"{step}", tiny(step), beside={"pytorch_model.bin": "pickle"})
        )
        if step < 512:
            del files["model.safetensors"]
        hub.commit(repo_id, files, revision=f"step{step}")
    listed = cli("steps", repo_id)
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()[2:]] == ["512", "1000", "14300"]
    assert listed.err.count("pytorch_model.bin is a pickle") == 1
    assert "left out 3 steps (0, 1, 2): pytorch_model.bin is a pickle" in listed.err
    loop = next(
        line for line in listed.err.splitlines() if line.startswith("  for step in step0 step1 step2; do")
    )
    name = repo_id.partition("/")[2]
    download, convert, *_ = pasted(loop, tmp_path)
    assert download == ["hf", "download", repo_id, "--revision", "step0", "--local-dir", f"{name}/step0"]
    assert (convert[0], convert[-1]) == ("python", f"{name}/step0")
    planned = cli("plan", recipe_for(repo_id, tmp_path / "r.yaml", 20000), "--out", "out")
    assert (planned.code, "no problems found" in planned.out) == (0, True)


def test_commits_of_flax_say_so(tmp_path: Path, cli: Cli, hub: LocalHub, repo_id: str) -> None:
    """One branch whose commits' titles say steps, and another format."""
    hub.create_repo(repo_id)
    for step in (10000, 150000, 190000):
        files = {"flax_model.msgpack": bytes(step // 10000), "config.json": b"{}"}
        hub.commit(repo_id, files, message=f"Saving weights and log at step {step}")
    listed = cli("steps", repo_id)
    assert [line.split()[3] for line in listed.out.splitlines()[2:5]] == ["Flax"] * 3
    planned = cli("plan", recipe_for(repo_id, tmp_path / "r.yaml", 200000), "--out", "out")
    assert planned.code == 1
    assert (
        "flax_model.msgpack is of another format, Flax; 2 more checkpoints lie so; convert them"
        in planned.out
    )
    assert "from_flax=True" in planned.out


def test_a_squashed_history_has_no_steps(tmp_path: Path, cli: Cli, hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, files_of(write_model(tmp_path / "m", tiny(1))), message="Super-squash branch 'main'")
    listed = cli("steps", repo_id)
    assert listed.code == 1
    assert "no checkpoints found; none of these names says a step" in listed.err


def test_equal_branches_are_told(tmp_path: Path, cli: Cli, hub: LocalHub, repo_id: str) -> None:
    """A wrong upload: the listing's hashes show it, though each commit is another one."""
    hub.create_repo(repo_id)
    for name, step in {1000: 3000, 2000: 3000, 3000: 3000, 4000: 4000}.items():
        files = files_of(write_model(tmp_path / f"{name}", tiny(step))) | {
            "README.md": f"step {name}".encode()
        }
        hub.commit(repo_id, files, revision=f"step{name}")
    said = "steps 1000 and 2000 hold the same weights as step 3000: nothing was trained between them, or"
    assert said in cli("steps", repo_id).err
    assert said in cli("plan", recipe_for(repo_id, tmp_path / "r.yaml", 9000), "--out", "out").out
