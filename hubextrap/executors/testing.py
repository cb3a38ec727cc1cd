"""What holds of every executor. Subclass `ExecutorTests`, give it yours, and pytest runs the tests on it.

    # conftest.py, so that pytest shows what an assertion compared
    pytest.register_assert_rewrite("hubextrap.executors.testing", "hubextrap.executors.testing_run")

    # test_my_executor.py
    from hubextrap.executors.testing import ExecutorTests

    class TestMyExecutor(ExecutorTests):
        workers = 2

        @pytest.fixture
        def executor(self, tmp_path):
            with my_cluster() as cluster:
                yield MyExecutor(cluster)

        def worker_pids(self):
            return [...]

The tests merge a real run of some kilobytes (`hubextrap.executors.testing_run`) and compare bytes with what
`engine.run_plan` makes in one process. They need pytest and Linux.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import pytest

from hubextrap.errors import CheckpointMismatch, HubExtrapError, NonFinite, OutputError
from hubextrap.executors.testing_run import (
    HEAD,
    SHARDS,
    Counting,
    TinyRun,
    holders,
    is_alive,
    other_plan,
    overwrite,
    records_of,
    send,
    shard_file,
)
from hubextrap.progress import SilentProgress
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.records import DONE, FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from hubextrap.executors.interface import Executor
    from hubextrap.work.plan import WorkPlan

SECRET = "hf_zq7" + "Xk3vPm9TdLw2RbYs8JcN" * 2
EVERY = tuple(range(SHARDS))
BF16_NAN = b"\xc0\x7f"
LARGE = 64_000_000
"""Bytes of one tensor that keep a worker busy for the better part of a second."""


class ExecutorTests:
    """The tests. What a subclass sets says what its executor can do; the rest is skipped, and seen to be."""

    workers: ClassVar[int] = 1
    """Units that it does at the same time."""
    detects_hangs: ClassVar[bool] = False
    """Whether a worker that stands still is taken for lost, within `patience`."""
    patience: ClassVar[float] = 60.0
    """Seconds in which the tiny run has to be done, however it is disturbed."""
    kills: ClassVar[int] = 3
    """Workers that are killed in one test."""

    @pytest.fixture
    def executor(self, tmp_path: Path) -> Iterator[Executor]:
        """The executor. To be overridden."""
        raise NotImplementedError("a subclass of ExecutorTests has to give its executor")

    @pytest.fixture
    def other_executor(self, executor: Executor) -> Executor:
        """Another one, that works in the same place at the same time; the same one can do for both."""
        return executor

    def worker_pids(self) -> list[int]:
        """The processes that do units just now; none where this process does them."""
        return []

    @pytest.fixture(autouse=True)
    def _ends_in_time(self) -> Iterator[None]:
        yield from self.alarm()

    def alarm(self) -> Iterator[None]:
        """Fail what is not done in time, up to the next step of the iterator."""

        def fail(*_: object) -> None:
            pytest.fail(f"not done after {self.patience:g} s")

        before = signal.signal(signal.SIGALRM, fail)
        signal.setitimer(signal.ITIMER_REAL, self.patience)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    @pytest.fixture
    def run(self, tmp_path: Path) -> TinyRun:
        return TinyRun.write(tmp_path / "run")

    def test_every_unit_ends_once_with_the_bytes_of_one_process(
        self, executor: Executor, run: TinyRun
    ) -> None:
        plan, expected = run.work_plan(), run.reference()
        found = list(executor.run(plan, run.place, EVERY, SilentProgress()))
        assert sorted(record.unit for record in found) == list(EVERY)
        records = records_of(plan, run.place)
        assert {record.plan for record in found} == {plan.digest}
        assert [records.get(record.unit) for record in found] == found
        assert records.failed() == frozenset()
        run.check_finished(expected)
        assert run.strays() == []

    def test_only_the_units_asked_for_are_done(self, executor: Executor, run: TinyRun) -> None:
        plan = run.work_plan()
        assert list(executor.run(plan, run.place, (), SilentProgress())) == []
        found = {one.unit for one in executor.run(plan, run.place, (4, 1), SilentProgress())}
        assert found == records_of(plan, run.place).done() == {1, 4}
        for files in run.outputs():
            assert set(files) == {shard_file(1), shard_file(4)}

    @pytest.mark.parametrize("unit", [-1, 10**6])
    def test_a_number_that_no_unit_has(self, unit: int, executor: Executor, run: TinyRun) -> None:
        plan = run.work_plan()
        with pytest.raises(HubExtrapError, match=str(plan.units)) as caught:
            list(executor.run(plan, run.place, (0, unit), SilentProgress()))
        assert str(unit) in str(caught.value)

    def test_progress_comes_to_the_bytes_of_the_units(self, executor: Executor, run: TinyRun) -> None:
        plan, progress = run.work_plan(), Counting()
        list(executor.run(plan, run.place, EVERY, progress))
        every = sum(map(plan.bytes_of, EVERY))
        assert progress.done == every == run.bytes_read()
        assert progress.announced == every

    def test_what_is_done_is_not_done_again(self, executor: Executor, run: TinyRun) -> None:
        plan = run.work_plan()
        first = list(executor.run(plan, run.place, (0, 3, 6), SilentProgress()))
        before = run.write_times()
        again = list(executor.run(plan, run.place, EVERY, SilentProgress()))
        assert sorted(one.unit for one in again) == list(EVERY)
        assert all(one in again for one in first)
        assert {path: stamp for path, stamp in run.write_times().items() if path in before} == before
        run.check_finished(run.reference())

    def test_a_slow_unit_holds_up_no_other(self, executor: Executor, tmp_path: Path) -> None:
        """Whoever does the first unit is stopped once it has begun, until all others are there."""
        if self.workers < 2:
            pytest.skip("one unit after the other")
        run = TinyRun.write(tmp_path / "large", large=LARGE)
        plan, held = run.work_plan(), list[int]()
        watching = threading.Event()

        def hold() -> None:
            while not watching.wait(0.005) and not held:
                for pid in holders(run.checkpoints[0] / shard_file(0)):
                    send(pid, signal.SIGSTOP)
                    held.append(pid)

        thread = threading.Thread(target=hold)
        thread.start()
        found: list[int] = []
        try:
            for record in executor.run(plan, run.place, EVERY, SilentProgress()):
                found.append(record.unit)
                if len(found) == SHARDS - 1:
                    self._go_on(held)
        finally:
            watching.set()
            thread.join()
            self._go_on(held)
        assert sorted(found) == list(EVERY)
        assert found[-1] == 0
        run.check_finished(run.reference())

    def test_two_at_the_same_time_on_one_place(
        self, executor: Executor, other_executor: Executor, run: TinyRun
    ) -> None:
        plan, failed, found = run.work_plan(), list[BaseException](), list[list[int]]()

        def work(one: Executor) -> None:
            try:
                found.append([record.unit for record in one.run(plan, run.place, EVERY, SilentProgress())])
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(one,)) for one in (executor, other_executor)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert [sorted(units) for units in found] == [list(EVERY)] * 2
        run.check_finished(run.reference())
        assert run.strays() == []

    def test_workers_killed_at_random(self, executor: Executor, tmp_path: Path) -> None:
        if type(self).worker_pids is ExecutorTests.worker_pids:
            pytest.skip("no worker is a process of its own")
        run = TinyRun.write(tmp_path / "large", large=LARGE)
        plan, progress = run.work_plan(), Counting()
        with self._disturbed(signal.SIGKILL, self.kills) as hit:
            found = [record.unit for record in executor.run(plan, run.place, EVERY, progress)]
        assert hit
        assert sorted(found) == list(EVERY)
        assert progress.done == sum(map(plan.bytes_of, EVERY))
        run.check_finished(run.reference())
        assert run.strays() == []

    def test_a_worker_that_stands_still(self, executor: Executor, tmp_path: Path) -> None:
        if not self.detects_hangs:
            pytest.skip("it does not tell a worker that stands still from a slow one")
        run = TinyRun.write(tmp_path / "large", large=LARGE)
        plan = run.work_plan()
        with self._disturbed(signal.SIGSTOP, 1) as hit:
            found = [record.unit for record in executor.run(plan, run.place, EVERY, SilentProgress())]
        assert hit
        assert sorted(found) == list(EVERY)
        run.check_finished(run.reference())

    @pytest.mark.parametrize("wrong", ["nan", "twin", "copied"])
    def test_what_is_wrong_with_an_input_is_said_as_one_process_says_it(
        self, wrong: str, executor: Executor, run: TinyRun
    ) -> None:
        unit, kind = _spoil(run, wrong)
        with pytest.raises(kind) as wanted:
            run.reference()
        plan = run.work_plan()
        records = records_of(plan, run.place)
        before = [one for one in EVERY if one != unit][:2]
        list(executor.run(plan, run.place, before, SilentProgress()))
        with pytest.raises(kind) as caught:
            list(executor.run(plan, run.place, EVERY, SilentProgress()))
        assert type(caught.value) is kind
        for name in ("tensor", "step", "file"):
            assert getattr(caught.value, name) == getattr(wanted.value, name)
        assert str(caught.value) == str(wanted.value)
        on_record = records.failure(unit)
        assert (type(on_record), str(on_record)) == (kind, str(wanted.value))
        assert records.failed() == {unit}
        assert set(before) <= records.done() <= set(EVERY) - {unit}
        expected = TinyRun.write(run.root / "as_it_was").reference()
        run.check_finished(expected, units=len(before))

    def test_a_file_that_changed_since_the_plan(self, executor: Executor, run: TinyRun) -> None:
        plan = run.work_plan()
        overwrite(run.checkpoints[1], 3, "layers.3.weight", b"\x00\x01")
        with pytest.raises(HubExtrapError, match="changed") as caught:
            list(executor.run(plan, run.place, EVERY, SilentProgress()))
        assert caught.value.file == shard_file(3)
        assert 3 not in records_of(plan, run.place).done()

    @pytest.mark.parametrize("other", ["byte", "version", "format"])
    def test_a_plan_that_is_not_as_it_was_written(self, other: str, executor: Executor, run: TinyRun) -> None:
        """Whoever reads it says so; whoever has it at hand makes what it says."""
        plan = run.work_plan()
        run.place.write(PLAN_FILE, other_plan(run.place.read(PLAN_FILE) or b"", other))
        if (error := _error_of(executor, plan, run)) is None:
            run.check_finished(run.reference())
        else:
            assert PLAN_FILE in str(error)
            assert records_of(plan, run.place).done() == frozenset()

    @pytest.mark.parametrize("damage", ["another plan", "cut", "bit", "empty", "another unit"])
    def test_a_record_that_counts_as_none(self, damage: str, executor: Executor, run: TinyRun) -> None:
        plan, expected = run.work_plan(), run.reference()
        list(executor.run(plan, run.place, (2, 3), SilentProgress()))
        good = [run.place.read(f"{DONE}/{unit}.json") or b"" for unit in (2, 3)]
        bad = {
            "another plan": good[0].replace(plan.digest.encode(), b"0" * len(plan.digest)),
            "cut": good[0][: len(good[0]) // 2],
            "bit": good[0].replace(b"1", b"3", 1),
            "empty": b"",
            "another unit": good[1],
        }
        run.place.write(f"{DONE}/2.json", bad[damage])
        for files in run.outputs():
            files[shard_file(2)].write_bytes(b"not it")
        found = sorted(one.unit for one in executor.run(plan, run.place, EVERY, SilentProgress()))
        assert found == list(EVERY)
        assert run.place.read(f"{DONE}/2.json") == good[0]
        run.check_finished(expected)

    def test_closed_before_its_end_it_leaves_what_is_done(self, executor: Executor, tmp_path: Path) -> None:
        run = TinyRun.write(tmp_path / "large", large=LARGE if self.workers > 1 else 0)
        plan, expected = run.work_plan(), run.reference()
        units = (1, 0, *EVERY[2:])
        idle = set(self.worker_pids())
        records = executor.run(plan, run.place, units, SilentProgress())
        assert isinstance(records, Generator), "what run returns can be closed"
        first = next(records)
        records.close()
        while any(is_alive(pid) for pid in set(self.worker_pids()) - idle):  # the alarm ends it
            time.sleep(0.05)
        assert first.unit in records_of(plan, run.place).done()
        run.check_finished(expected, units=1)
        again = [one.unit for one in executor.run(plan, run.place, units, SilentProgress())]
        assert sorted(again) == list(EVERY)
        run.check_finished(expected)
        assert run.strays() == []

    def test_no_secret_is_left(
        self, executor: Executor, run: TinyRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", SECRET)
        _spoil(run, "nan")
        plan = run.work_plan()
        with pytest.raises(NonFinite) as caught:
            list(executor.run(plan, run.place, EVERY, SilentProgress()))
        written = [path for path in run.root.rglob("*") if path.is_file()]
        assert any(path.parent.name == FAILED for path in written)
        for path in written:
            assert SECRET.encode() not in path.read_bytes(), path
        assert SECRET not in repr(caught.value.__dict__) + str(caught.value)

    def test_a_place_where_no_record_can_be_written(self, executor: Executor, run: TinyRun) -> None:
        plan = run.work_plan()
        folder = run.root / ".out.partial" / "work"
        (folder / DONE).write_bytes(b"in the way")
        with pytest.raises(OutputError) as caught:
            list(executor.run(plan, run.place, EVERY, SilentProgress()))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("done", [0, 1])
    def test_a_place_that_goes(self, done: int, executor: Executor, run: TinyRun) -> None:
        """It ends, and with an error that names the place if it does not end well."""
        plan = run.work_plan()
        folder = run.root / ".out.partial" / "work"

        def go(units: int) -> None:
            if units == done:
                folder.rename(run.root / "gone")

        go(0)
        if (error := _error_of(executor, plan, run, go)) is None:
            run.check_finished(run.reference())
        else:
            assert str(folder) in str(error)

    @contextmanager
    def _disturbed(self, sign: signal.Signals, times: int) -> Iterator[list[int]]:
        """Send workers a signal at random moments, so many of them; yields those that got one."""
        hit: list[int] = []
        ended, rng = threading.Event(), random.Random(times)

        def disturb() -> None:
            for _ in itertools.count():
                if ended.wait(rng.uniform(0.05, 0.6)) or len(hit) == times:
                    return
                if pids := [pid for pid in self.worker_pids() if pid not in hit and is_alive(pid)]:
                    hit.append(rng.choice(pids))
                    send(hit[-1], sign)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            yield hit
        finally:
            ended.set()
            thread.join()
            self._go_on(hit)

    @staticmethod
    def _go_on(pids: Sequence[int]) -> None:
        for pid in pids:
            send(pid, signal.SIGCONT)


def _error_of(
    executor: Executor, plan: WorkPlan, run: TinyRun, after: Callable[[int], None] = lambda units: None
) -> HubExtrapError | None:
    """What a run of all units raises, None where it does them all; ``after`` learns how many are done."""
    found = []
    try:
        for record in executor.run(plan, run.place, EVERY, SilentProgress()):
            found.append(record.unit)
            after(len(found))
    except HubExtrapError as error:
        return error
    assert sorted(found) == list(EVERY)
    return None


def _spoil(run: TinyRun, wrong: str) -> tuple[int, type[HubExtrapError]]:
    """Make an input wrong; the unit that meets it, and the error that says so."""
    last = run.checkpoints[-1]
    if wrong == "nan":
        overwrite(last, 3, "layers.3.weight", BF16_NAN)
        return 3, NonFinite
    if wrong == "twin":
        overwrite(last, 4, HEAD, b"\x01\x02")
        return 4, CheckpointMismatch
    overwrite(run.checkpoints[0], 2, "position_ids", b"\x05")
    return 2, CheckpointMismatch
