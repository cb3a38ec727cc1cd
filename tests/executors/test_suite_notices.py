"""The conformance suite fails on executors that break a promise, one for each, and on no other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from executors.processes import ProcessExecutor

from hubextrap.errors import HubExtrapError
from hubextrap.executors.local import LocalExecutor
from hubextrap.executors.testing import SECRET, ExecutorTests
from hubextrap.executors.testing_run import TinyRun, shard_file
from hubextrap.progress import Progress, SilentProgress
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import DONE, Record, Records

FAILED = (AssertionError, pytest.fail.Exception)


class Broken(LocalExecutor):
    """Does what `LocalExecutor` does, but for what a subclass changes."""

    def run(self, plan: WorkPlan, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        assert isinstance(place, FolderPlace)
        yield from self.broken(plan, place, units, progress)

    def broken(self, plan: WorkPlan, place: FolderPlace, units: Any, progress: Any) -> Iterator[Record]:
        return super().run(plan, place, units, progress)


class Twice(Broken):
    def broken(self, *given: Any) -> Iterator[Record]:
        for record in super().broken(*given):
            yield record
            yield record


class OneLess(Broken):
    def broken(self, plan: Any, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        return super().broken(plan, place, units[:-1], progress)


class OneMore(Broken):
    def broken(self, plan: Any, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        list(super().broken(plan, place, [0], SilentProgress()))
        return super().broken(plan, place, units, progress)


class OtherBytes(Broken):
    def broken(self, plan: WorkPlan, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        for record in super().broken(plan, place, units, progress):
            file = Path(plan.outputs[1].folder or "", shard_file(record.unit))
            file.write_bytes(file.read_bytes()[:-1] + b"\xff")
            yield record


class NotOnRecord(Broken):
    def broken(self, plan: Any, place: FolderPlace, units: Any, progress: Any) -> Iterator[Record]:
        for record in super().broken(plan, place, units, progress):
            (place.folder / DONE / f"{record.unit}.json").unlink()
            yield record


class Again(Broken):
    def broken(self, plan: Any, place: FolderPlace, units: Any, progress: Any) -> Iterator[Record]:
        for unit in units:
            if 0 <= unit < plan.units:
                (place.folder / DONE / f"{unit}.json").unlink(missing_ok=True)
        return super().broken(plan, place, units, progress)


class NoProgress(Broken):
    def broken(self, plan: Any, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        return super().broken(plan, place, units, SilentProgress())


class ItsOwnErrors(Broken):
    def broken(self, *given: Any) -> Iterator[Record]:
        try:
            yield from super().broken(*given)
        except HubExtrapError as error:
            raise HubExtrapError(f"a worker failed: {error}") from error


class AnyNumber(Broken):
    def broken(self, plan: Any, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        return super().broken(plan, place, [one for one in units if one in range(plan.units)], progress)


class BelievesRecords(Broken):
    def broken(self, plan: Any, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        done = Records(place, plan.digest).done()
        yield from super().broken(plan, place, [unit for unit in units if unit not in done], progress)
        for unit in done & set(units):
            yield Record(unit, plan.digest, {})


class TellsSecrets(Broken):
    def broken(self, plan: Any, place: FolderPlace, units: Any, progress: Any) -> Iterator[Record]:
        (place.folder / "environment").write_text(os.environ["HF_TOKEN"])
        return super().broken(plan, place, units, progress)


class LeavesStrays(Broken):
    def broken(self, plan: WorkPlan, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        Path(plan.outputs[0].folder or "", ".model-00001-of-00007.safetensors.part").write_bytes(b"half")
        return super().broken(plan, place, units, progress)


class HalfMade(Broken):
    def broken(self, plan: WorkPlan, place: Any, units: Any, progress: Any) -> Iterator[Record]:
        for record in super().broken(plan, place, units, progress):
            try:
                yield record
            except GeneratorExit:
                Path(plan.outputs[0].folder or "", shard_file(0)).write_bytes(b"half")
                raise


NOTICED: list[tuple[type[Broken], str, dict[str, Any]]] = [
    (Twice, "every_unit_ends_once_with_the_bytes_of_one_process", {}),
    (OneLess, "every_unit_ends_once_with_the_bytes_of_one_process", {}),
    (OtherBytes, "every_unit_ends_once_with_the_bytes_of_one_process", {}),
    (NotOnRecord, "every_unit_ends_once_with_the_bytes_of_one_process", {}),
    (LeavesStrays, "every_unit_ends_once_with_the_bytes_of_one_process", {}),
    (OneMore, "only_the_units_asked_for_are_done", {}),
    (AnyNumber, "a_number_that_no_unit_has", {"unit": 7}),
    (NoProgress, "progress_comes_to_the_bytes_of_the_units", {}),
    (Again, "what_is_done_is_not_done_again", {}),
    (ItsOwnErrors, "what_is_wrong_with_an_input_is_said_as_one_process_says_it", {"wrong": "nan"}),
    (AnyNumber, "a_number_that_no_unit_has", {"unit": -1}),
    (BelievesRecords, "a_record_that_counts_as_none", {"damage": "cut"}),
    (HalfMade, "closed_before_its_end_it_leaves_what_is_done", {}),
    (TellsSecrets, "no_secret_is_left", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "test", "given"), NOTICED, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_broken_promise_is_noticed(
    broken: type[Broken], test: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    noticed = (*FAILED, HubExtrapError) if broken is ItsOwnErrors else FAILED
    with pytest.raises(noticed):
        call(ExecutorTests(), test, broken(), tmp_path, monkeypatch, given)


def call(
    suite: ExecutorTests,
    test: str,
    executor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    """One test of the suite, as pytest calls it."""
    function = getattr(suite, f"test_{test}")
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    known = {"tmp_path": tmp_path, "monkeypatch": monkeypatch, "executor": executor} | given
    if "run" in names:
        known["run"] = TinyRun.write(tmp_path / "run")
    function(**{name: known[name] for name in names if name != "self"})


class WaitsForTheFirst(ProcessExecutor):
    def run(self, plan: WorkPlan, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        return iter(sorted(super().run(plan, place, units, progress), key=lambda record: record.unit))


class NeverAgain(ProcessExecutor):
    def run(self, plan: WorkPlan, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("executors.processes.RETRIES", 0)
            yield from super().run(plan, place, units, progress)


class NoPatience(ProcessExecutor):
    hang = 600.0


def call_on_workers(
    executor: ProcessExecutor, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    class Suite(ExecutorTests):
        workers = 2
        detects_hangs = True

        def worker_pids(self) -> list[int]:
            return [process.pid for process in list(executor.running) if process.pid is not None]

    suite = Suite()
    suite.patience = patience  # type: ignore[misc]
    alarm = suite.alarm()
    next(alarm)
    try:
        call(suite, test, executor, tmp_path, monkeypatch, {"other": "version"})
    finally:
        list(alarm)


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        "every_unit_ends_once_with_the_bytes_of_one_process",
        "a_slow_unit_holds_up_no_other",
        "workers_killed_at_random",
        "a_worker_that_stands_still",
        "a_plan_that_is_not_as_it_was_written",
        "closed_before_its_end_it_leaves_what_is_done",
    ],
)
def test_an_executor_that_keeps_its_promises(
    test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a worker that is held for as long as all others take stands still, and is not to be taken for lost
    executor = NoPatience() if test == "a_slow_unit_holds_up_no_other" else ProcessExecutor()
    call_on_workers(executor, test, tmp_path, monkeypatch, patience=60.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (WaitsForTheFirst, "a_slow_unit_holds_up_no_other"),
        (NeverAgain, "workers_killed_at_random"),
        (NoPatience, "a_worker_that_stands_still"),
    ],
)
def test_a_broken_promise_about_workers_is_noticed(
    broken: type[ProcessExecutor], test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((*FAILED, HubExtrapError)):
        call_on_workers(broken(), test, tmp_path, monkeypatch, patience=8.0)
