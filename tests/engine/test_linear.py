"""What a command does grows with tensors, files, checkpoints, targets and rules, and not with their products.

Counted, not timed: the instructions of Python's virtual machine, at a size, twice and four times that. From
the second to the third there may be twice as many more as from the first to the second.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hubextrap
from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.engine.resuming import check_inputs
from hubextrap.foreign_text import redacted
from hubextrap.methods import Rule, assign_rules
from hubextrap.methods.rules import FirstMatch
from hubextrap.progress import SilentProgress
from hubextrap.statistics import GramTable, expect_of_last
from hubextrap.tensors import Journal, LocalSink, LocalSource, read_layouts
from hubextrap.tensors.interfaces import FileInfo
from hubextrap.tensors.ranges import coalesce

MORE = 2.5
"""Twice as many more are linear, four times as many are quadratic."""


def instructions(work: Callable[[], object]) -> int:
    """How many instructions it takes, in threads that it starts too."""
    lock, count = threading.Lock(), 0

    def local(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        if event == "opcode":
            with lock:
                count += 1
        return local

    def trace(frame: Any, event: str, argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]
    return count


def grows_linearly(work: Callable[[int], Callable[[], object]], size: int) -> None:
    """``work(n)`` prepares a size, and returns what is counted."""
    work(size)()  # what is imported or compiled once
    few, some, many = (instructions(work(size * times)) for times in (1, 2, 4))
    assert many - some < MORE * (some - few), (few, some, many)


def write_run(root: Path, *, tensors: int = 24, shards: int = 4, checkpoints: int = 3) -> Path:
    """Checkpoints of tensors of eight weights in several files."""
    names = [f"model.layers.{i // 8}.{'abcdefgh'[i % 8]}_proj.weight" for i in range(tensors)]
    places = np.array_split(np.arange(tensors), shards)
    for k in range(checkpoints):
        folder = root / f"step_{10 * k}"
        folder.mkdir(parents=True)
        weight_map: dict[str, str] = {}
        for number, numbers in enumerate(places, 1):
            file = f"model-{number:05d}-of-{shards:05d}.safetensors"
            header = {
                names[i]: {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16 * at, 16 * at + 16]}
                for at, i in enumerate(numbers)
            }
            text = json.dumps(header).encode()
            values = np.full(8 * len(numbers), 0x3F80 + k, np.uint16).tobytes()
            (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + values)
            weight_map |= dict.fromkeys((names[i] for i in numbers), file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return root


def recipe_of(root: Path, targets: int = 2, rules: int = 2) -> hubextrap.Recipe:
    steps = ", ".join(str(10_000 + step) for step in range(targets))
    own = "".join(f"    - {{match: 'model.layers.{layer}.*', method: two_point}}\n" for layer in range(rules))
    path = root / "recipe.yaml"
    path.write_text(
        f"trajectory: {{repo: {root}}}\nmerge_method: least_squares\n"
        f"parameters:\n  target_step: [{steps}]\n  tensors:\n{own}"
    )
    return hubextrap.load_recipe(path)


PLANS: dict[str, tuple[int, Callable[[int], dict[str, int]]]] = {
    "tensors": (16, lambda n: {"tensors": n}),
    "files": (12, lambda n: {"tensors": n, "shards": n}),
    "checkpoints": (4, lambda n: {"checkpoints": n}),
    "targets": (4, lambda n: {"targets": n}),
    "targets of many tensors": (4, lambda n: {"targets": n, "tensors": 24 * n, "shards": 2, "rules": 1}),
    "rules": (16, lambda n: {"rules": n, "tensors": 8 * n}),
}
OTHERS = ("files", "checkpoints", "targets", "targets of many tensors", "rules")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["tensors", *(pytest.param(what, marks=pytest.mark.slow) for what in OTHERS)]
)
def test_a_plan(what: str, tmp_path: Path) -> None:
    size, sizes = PLANS[what]
    numbers = iter(range(100))

    def of(n: int) -> Callable[[], object]:
        chosen = sizes(n)
        asked = {name: chosen.pop(name) for name in ("targets", "rules") if name in chosen}
        root = write_run(tmp_path / str(next(numbers)), **chosen)
        recipe = recipe_of(root, **asked)
        settings = hubextrap.MergeOptions(memory=2**34, force=True)
        return lambda: _sound(hubextrap.plan(recipe, out=root / "out", settings=settings))

    grows_linearly(of, size)


def _sound(report: hubextrap.PlanReport) -> None:
    assert not report.problems


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tensors", "files", "checkpoints"])
def test_a_merge_and_what_follows(what: str, tmp_path: Path) -> None:
    """Merged, taken for whole by the same command, and verified."""
    size, sizes = PLANS[what]
    numbers = iter(range(100))

    def of(n: int) -> Callable[[], object]:
        root = write_run(tmp_path / str(next(numbers)), **sizes(n))
        recipe = recipe_of(root, targets=1)
        settings = hubextrap.MergeOptions(workers=1, force=True)

        def work() -> None:
            made = hubextrap.merge(recipe, out=root / "out", settings=settings)
            assert not hubextrap.verify(made.predictions[0].folder or "").problems

        return work

    grows_linearly(of, size)


class Listed(LocalSource):
    """A local source whose files have hashes, as the Hub lists them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._listed = {
            file: FileInfo(info.size, hashlib.sha256((folder / file).read_bytes()).hexdigest())
            for file, info in LocalSource(folder).files().items()
        }

    def files(self) -> dict[str, FileInfo]:
        return self._listed


@pytest.mark.slow
def test_files_that_are_compared_with_the_hubs_hashes(tmp_path: Path) -> None:
    numbers = iter(range(100))

    def of(n: int) -> Callable[[], object]:
        root = write_run(tmp_path / str(next(numbers)), tensors=n, shards=n, checkpoints=2)
        sources = [Listed(root / f"step_{step}") for step in (0, 10)]
        row = np.array([[-0.5, 1.5]])
        plan = plan_merge((0, 10), read_layouts(sources), lambda name: row, budget=Budget(workers=1))
        return lambda: run_plan(plan, sources, [LocalSink(root / "out")])

    grows_linearly(of, 50)


class Counted(tuple[int, ...]):
    """Counts what is read of it, which C code does without an instruction."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        Counted.read += len(self)
        return super().__iter__()


def test_finished_shards_that_are_read_again(tmp_path: Path) -> None:
    """Each checkpoint of each tensor is looked up once, not each for each."""
    found = []
    for checkpoints in (4, 8):
        root = write_run(tmp_path / str(checkpoints), checkpoints=checkpoints)
        sources = [LocalSource(root / f"step_{10 * k}") for k in range(checkpoints)]
        rows = np.full((1, checkpoints), 1 / checkpoints)
        plan = plan_merge(range(checkpoints), read_layouts(sources), lambda name, rows=rows: rows)  # type: ignore[misc]
        shards = tuple(
            replace(one, tensors=tuple(replace(t, checkpoints=Counted(t.checkpoints)) for t in one.tensors))
            for one in plan.shards
        )
        plan = replace(plan, shards=shards)
        journal = Journal(root / "journal", {})
        run_plan(plan, sources, [LocalSink(root / "out", journal)], journals=[journal])
        journal.stamps.clear()
        Counted.read = 0
        check_inputs(plan, sources, [journal], SilentProgress())
        assert len(journal.finished) == len(shards)
        found.append(Counted.read)
        journal.close()
    assert found[0] > 0
    assert found[1] == 2 * found[0]


def test_rules_of_many_tensors() -> None:
    """A rule per tensor, named whole and by how it begins."""

    def of(n: int) -> Callable[[], object]:
        names = [f"model.layers.{i}.weight" for i in range(n)]
        rules = [Rule((name if i % 2 else name[:-6] + "*",), "two_point") for i, name in enumerate(names)]
        rules.append(Rule(("*",), "persistence"))
        assigned = assign_rules(rules, [*names, "norm"])
        assert [assigned[name] for name in names] == rules[:-1]
        assert assigned["norm"] is rules[-1]
        gram = np.tile(np.outer([0.0, 1, 2], [0.0, 1, 2]), (n, 1, 1))
        table = GramTable((0, 1, 2), tuple(names), np.ones(n, np.int64), gram)

        def work() -> None:
            assign_rules(rules, [*names, "norm"])
            expect_of_last(rules, table, 3, False)

        return work

    grows_linearly(of, 20)


def test_the_first_rule_that_matches_whatever_the_globs_begin_with() -> None:
    rules = [
        Rule((glob,), "persistence")
        for glob in ("a.b?", "*.c", "a.[bc]*", "[!a].d", "a.b.c", "a.*", "a[", "?", "*")
    ]
    first = FirstMatch(rules)
    for name in ("a.bx", "a.b.c", "x.c", "a.cd", "b.d", "a.d", "a[", "a", "", "z.z", "a.b"):
        index = first(name)
        assert index is not None
        assert rules[index] is next(rule for rule in rules if rule.matches(name))


def test_json_of_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are looked for in the environment once, not for each tensor's name."""

    def of(n: int) -> Callable[[], object]:
        value = {"rules": [{"match": f"model.layers.{i}.weight"} for i in range(n)]}
        for i in range(n):
            monkeypatch.setenv(f"MADE_UP_{i}", "is no secret")
        return lambda: redacted(value)

    grows_linearly(of, 50)


def test_a_folder_is_listed_once(tmp_path: Path) -> None:
    source = LocalSource(write_run(tmp_path) / "step_0")
    assert source.files() is source.files()
    source.close()
    assert not source.files()


def test_ranges_that_touch() -> None:
    """What C code copies takes no instruction, so this is timed: eight times as many, eight times as long,
    where copying each of them for each took fifty times."""

    def seconds(count: int) -> float:
        ranges = [(16 * number, 16) for number in range(count)]
        times = []
        for _ in range(3):
            started = time.thread_time()
            (span,) = coalesce(ranges, 0, 2**63)
            times.append(time.thread_time() - started)
        assert span.members == tuple(range(count))
        return min(times)

    assert seconds(40_000) < 24 * seconds(5_000)


def test_files_of_the_local_hub(tmp_path: Path) -> None:
    """A commit knows of each path what lies there, and does not look at all the files for each."""
    pygit2 = pytest.importorskip("pygit2", reason="pygit2 not installed")
    from hubextrap.localhub.repository import Change, HubRepo, settings_for

    numbers = iter(range(100))

    def of(n: int) -> Callable[[], object]:
        folder = tmp_path / str(next(numbers))
        pygit2.init_repository(str(folder), bare=True)
        repo = HubRepo.wrap(folder, settings_for("model", "me/model", False, False))
        changes = [Change(f"{i % 7}/{i}.safetensors", b"x") for i in range(n)]
        return lambda: repo.tree_with(None, changes)

    grows_linearly(of, 60)
