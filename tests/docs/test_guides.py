"""The guides, followed by their own text: every command and recipe in order, on a loopback Hub.

The checkpoints are those of the bundled run, laid out as each guide says. `STANDS_FOR` is all that is changed
in a guide's text, and `Guide.not_run` all that is left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT
from torch_runs import write_fsdp

from hubextrap.localhub import LocalHub

RUN = ROOT / "demo" / "data" / "rlvr-C"
STEPS = (40, 80, 100, 120, 160, 200, 400)
STANDS_FOR = {
    "gsm8k": "radd",
    "tasks: [radd]": f"tasks: [radd], include_path: {ROOT / 'demo' / 'tasks'}",
    "--tasks radd": f"--tasks radd --include-path {ROOT / 'demo' / 'tasks'}",
}
"""What a guide names, and what is here in its place: the bundled run's task, and where it lies."""


@dataclass(frozen=True)
class Block:
    """A fenced block, and the recipe's file where it is one: the first that a later command names."""

    language: str
    text: str
    file: str | None = None

    @property
    def commands(self) -> list[str]:
        """Command lines, continuation lines joined; in a console, what follows a prompt."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True)
class Guide:
    """How a guide is followed.

    Args:
        lay_out: makes what the guide takes for granted.
        not_run: commands, and first lines of blocks, that cannot be run here.
        made: what `hubextrap verify` has to pass afterwards.
        packages: what has to be installed.
    """

    lay_out: Callable[[LocalHub, Path], None]
    made: tuple[str, ...]
    not_run: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


def files(step: int, under: str = "") -> dict[str, Path | bytes | None]:
    return {f"{under}{file.name}": file for file in sorted((RUN / f"step_{step}").iterdir())}


def write(folder: Path, content: dict[str, Path | bytes | None]) -> None:
    for name, data in content.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        assert data is not None
        file.write_bytes(data.read_bytes() if isinstance(data, Path) else data)


def branches(hub: LocalHub, repo: str) -> None:
    hub.create_repo(repo)
    for step in STEPS:
        hub.commit(repo, files(step), revision=f"step_{step}")


def branch_run(hub: LocalHub, here: Path) -> None:
    branches(hub, "me/my-grpo-run")


def verl_run(hub: LocalHub, here: Path) -> None:
    """As verl leaves it: FSDP shards by torch, and beside them all but the weights; step 0 is the base's."""
    hub.create_repo("Qwen/Qwen2.5-Math-1.5B")
    hub.commit("Qwen/Qwen2.5-Math-1.5B", files(0))
    hub.create_repo("me/my-verl-run")
    for step in STEPS:
        actor = here / "checkpoints/my-run" / f"global_step_{step}" / "actor"
        write_fsdp(actor, RUN / f"step_{step}" / "model.safetensors", 2)
        beside = {
            name: data for name, data in files(step, "huggingface/").items() if "safetensors" not in name
        }
        write(actor, beside | {"optim_world_size_2_rank_0.pt": b"\x80raw"})
        found = (path for path in actor.rglob("*") if path.is_file())
        hub.commit(
            "me/my-verl-run", {f"global_step_{step}/actor/{path.relative_to(actor)}": path for path in found}
        )


def trainer_state(step: int) -> bytes:
    """Of a run of 1000 steps whose rate falls linearly to 0."""
    log = [{"step": at, "learning_rate": 1e-6 * (1 - at / 1000)} for at in range(10, step + 1, 10)]
    return json.dumps({"global_step": step, "max_steps": 1000, "log_history": log}).encode()


def trainer_run(hub: LocalHub, here: Path, strategy: str = "checkpoint") -> None:
    """``output_dir``, and what each strategy pushes: one commit of the model, then one of its state."""
    hub.create_repo("me/my-run")
    for step in STEPS:
        state: dict[str, Path | bytes | None] = {
            "trainer_state.json": trainer_state(step),
            "optimizer.pt": b"\x80",
        }
        write(here / "out" / f"checkpoint-{step}", files(step) | state)
        title = f"Training in progress, step {step}"
        hub.commit("me/my-run", files(step) | {"training_args.bin": b"\x80"}, message=title)
        if strategy != "every_save":
            under = "last-checkpoint" if strategy == "checkpoint" else f"checkpoint-{step}"
            content = {f"{under}/{name}": data for name, data in (files(step) | state).items()}
            hub.commit("me/my-run", content, message=f"{title}, checkpoint")


def mergekit_run(hub: LocalHub, here: Path) -> None:
    """The config names the base model and one checkpoint, step 1400."""
    for repo, revision, step in (("Qwen/Qwen2.5-Math-1.5B", "main", 0), ("me/my-grpo-run", "step_1400", 400)):
        hub.create_repo(repo)
        hub.commit(repo, files(step), revision=revision)


def recipes_in_a_repository(hub: LocalHub, here: Path) -> None:
    """A checkout that holds the recipe and the pinned dependencies."""
    branches(hub, "me/my-grpo-run")
    recipe: dict[str, Any] = {
        "trajectory": {"repo": "me/my-grpo-run", "steps": {"min": 100, "max": 200}},
        "merge_method": "two_point",
        "parameters": {"target_step": 400},
        "push": {"repo": "me/model", "revision": "step_400"},
        "evaluate": {"tasks": ["radd"], "include_path": str(ROOT / "demo" / "tasks"), "against": ["last"]},
    }
    write(here, {"merge_configs/mine.yaml": yaml.safe_dump(recipe).encode()})


GUIDES = {
    "hub-branches": Guide(
        branch_run, ("predicted", "me/my-grpo-run-predicted@step_400"), packages=("lm_eval",)
    ),
    "verl": Guide(
        verl_run,
        ("predicted", "predicted-by-recipe", "step-400"),
        not_run=("checkpoints/my-run/",),
        packages=("lm_eval",),
    ),
    "trainer": Guide(trainer_run, ("predicted", "predicted-by-recipe", "me/my-run-predicted@step_600")),
    "mergekit": Guide(mergekit_run, (), packages=("mergekit",)),  # mergekit overwrites what hubextrap wrote
    "ci": Guide(
        recipes_in_a_repository,
        ("me/model@step_600",),
        not_run=(
            "      - uses: OWNER/hf-extrap/.github/actions/hubextrap@SHA",
            "name: plan",
            "jobs:",
            "on:",
            "name: plan",
            "pip install -c constraints.txt .",
            'pip install -c constraints.txt ".[eval]"',
        ),
        packages=("lm_eval",),
    ),
}


def blocks(guide: str) -> list[Block]:
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text()
    found = [Block(*pair) for pair in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    for place, block in enumerate(found):
        if block.language == "yaml":
            later = " ".join(command for other in found[place:] for command in shell(other))
            name = re.search(r"\S+\.yaml", later)
            found[place] = Block(block.language, block.text, name[0] if name else None)
    return found


def shell(block: Block) -> list[str]:
    return block.commands if block.language in ("console", "bash") else []


def left_out(guide: str) -> Iterator[str]:
    """What following the guide does not run, by its own line."""
    for block in blocks(guide):
        if block.language in ("console", "bash"):
            yield from (line for line in block.commands if not line.startswith("hubextrap "))
        elif block.language != "yaml" or not is_recipe(block):
            yield block.text.splitlines()[0]


def is_recipe(block: Block) -> bool:
    content = yaml.safe_load(block.text)
    return isinstance(content, dict) and "merge_method" in content


def test_every_guide_is_followed() -> None:
    assert set(GUIDES) == {page.stem for page in (ROOT / "docs" / "guides").glob("*.md")}


@pytest.mark.parametrize("name", GUIDES)
def test_what_is_not_run_is_declared(name: str) -> None:
    assert set(left_out(name)) == set(GUIDES[name].not_run)


@pytest.mark.parametrize("name", ["hub-branches", "verl", "trainer"])
def test_a_guide_to_a_run_begins_with_the_shortest_path(name: str) -> None:
    """One command, before anything else that is run."""
    first = next(command for block in blocks(name) for command in shell(block))
    assert re.match(r"hubextrap predict \S+ .*--out \S+", first), first


class Follower:
    """Runs what a guide says, in one folder, against a Hub of its own."""

    def __init__(self, here: Path, hub: LocalHub, token: str) -> None:
        self.here = here
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        python = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
        hub_variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(here / "hf-home")}
        self.environment = os.environ | {"PATH": path, "PYTHONPATH": python} | hub_variables

    def follow(self, block: Block) -> None:
        text = block.text
        for name, stand_in in STANDS_FOR.items():
            text = text.replace(name, stand_in)
        block = Block(block.language, text, block.file)
        if block.language == "yaml" and is_recipe(block):
            assert block.file is not None, f"no command names a file for this recipe:\n{text}"
            (self.here / block.file).write_text(text)
        for command in shell(block):
            if command.startswith("hubextrap "):
                self.run(command)

    def run(self, command: str) -> str:
        """What it prints."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.here,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def own_hub(tmp_path: Path, token: str) -> Iterator[LocalHub]:
    """The guides name repos of others and of each other."""
    with LocalHub(tmp_path / "hub", tokens={token: "me"}) as hub:
        yield hub


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_works_as_it_stands(name: str, own_hub: LocalHub, token: str, tmp_path: Path) -> None:
    guide = GUIDES[name]
    for package in guide.packages:
        pytest.importorskip(package)
    here = tmp_path / "here"
    here.mkdir()
    guide.lay_out(own_hub, here)
    follower = Follower(here, own_hub, token)
    for block in blocks(name):
        follower.follow(block)
    for made in guide.made:
        follower.run(f"hubextrap verify {made}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["every_save", "all_checkpoints"])
def test_what_the_trainer_pushes_is_found_by_the_same_line(
    strategy: str, own_hub: LocalHub, token: str, tmp_path: Path
) -> None:
    """The guide's table has three strategies; the guide is followed with the third."""
    here = tmp_path / "here"
    trainer_run(own_hub, here, strategy)
    line = "hubextrap steps me/my-run"
    assert [block for block in blocks("trainer") if line in block.commands]
    listed = Follower(here, own_hub, token).run(f"{line} --json")
    assert [one["step"] for one in json.loads(listed)] == list(STEPS)
