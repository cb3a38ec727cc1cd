"""Units done, killed at any step and done again: bytes, records and what lies beside them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from executors.processes import PROCESSES, work_until

from hubextrap.api.working import worker as work_here
from hubextrap.errors import NonFinite, OutputError, SourceError
from hubextrap.executors.testing_run import SHARDS, Counting, TinyRun, overwrite, shard_file
from hubextrap.tensors import LocalSink
from hubextrap.work.doing import do_units, may_pass
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import DONE, FAILED, Records

EVERY = range(SHARDS)
KILLED_AT = 40


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    return TinyRun.write(tmp_path / "run")


def ended(run: TinyRun, units: Sequence[int], dies_at: int | None = None, after: float | None = None) -> int:
    """How a process ended that did units, and was killed before a step, or after so many seconds."""
    process = PROCESSES.Process(target=work_until, args=(run.place.name, units, dies_at))
    process.start()
    if after is not None:
        time.sleep(after)
        process.kill()
    process.join()
    return process.exitcode or 0


def check_so_far(run: TinyRun, plan: WorkPlan, expected: list[dict[str, bytes]]) -> None:
    """What has a final name is whole, and what is on record is there."""
    run.check_finished(expected, units=0)
    records = Records(run.place, plan.digest)
    for unit in records.done():
        assert records.get(unit) is not None
        assert all(shard_file(unit) in files for files in run.outputs())


@pytest.mark.slow
def test_killed_before_every_step_of_a_unit(tmp_path: Path) -> None:
    """The unit is then done again; nothing of the killed attempt is left."""
    run = TinyRun.write(tmp_path / "run")
    plan, expected = run.work_plan(), run.reference()
    for step in range(1, KILLED_AT):
        killed = ended(run, [2], step) == -signal.SIGKILL
        check_so_far(run, plan, expected)
        (record,) = do_units(plan, [2], run.place)
        assert record == Records(run.place, plan.digest).get(2)
        check_so_far(run, plan, expected)
        assert run.strays() == []
        assert [set(files) for files in run.outputs()] == [{shard_file(2)}] * 2
        if not killed:
            break
        Path(run.place.name, DONE, "2.json").unlink()
        for files in run.outputs():
            files[shard_file(2)].unlink()
    assert 8 <= step < KILLED_AT - 1, "each of its steps"


@pytest.mark.slow
def test_killed_at_random_until_it_is_done(tmp_path: Path) -> None:
    run = TinyRun.write(tmp_path / "run", large=4_000_000)
    plan, expected, rng = run.work_plan(), run.reference(), random.Random(16)
    kills = [ended(run, EVERY, after=rng.uniform(0.0, 0.25)) for _ in range(15)]
    check_so_far(run, plan, expected)
    assert kills.count(-signal.SIGKILL) > 5
    assert ended(run, EVERY) == 0
    assert Records(run.place, plan.digest).done() == set(EVERY)
    run.check_finished(expected)
    assert run.strays() == []


def test_a_shard_that_is_gone_is_made_again(run: TinyRun) -> None:
    """Its record is there; `finish` misses the shard, and tells to run a worker."""
    plan, expected = run.work_plan(), run.reference()
    (before,) = do_units(plan, [2], run.place)
    run.outputs()[1][shard_file(2)].unlink()
    assert list(do_units(plan, [2], run.place)) == [before]
    run.check_finished(expected, units=1)
    run.outputs()[0][shard_file(2)].write_bytes(b"cut")
    assert work_here(run.place.name) == [(unit, shard_file(unit)) for unit in EVERY]
    run.check_finished(expected)
    assert work_here(run.place.name) == []
    run.place.write(f"{DONE}/4.json", b"damaged")
    assert work_here(run.place.name) == [(4, shard_file(4))]


def test_without_a_place_records_are_only_handed_over(run: TinyRun) -> None:
    plan, expected = run.work_plan(), run.reference()
    found = list(do_units(plan, [3, 1]))
    assert [record.unit for record in found] == [3, 1]
    assert found[0].content["shards"][0]["size"] == len(expected[0][shard_file(3)])
    run.check_finished(expected, units=2)
    assert run.place.names(DONE) == frozenset()


def test_left_in_the_middle_it_lets_go_of_everything(run: TinyRun) -> None:
    plan = run.work_plan()
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    working = do_units(plan, EVERY, run.place)
    assert next(working).unit == 0
    working.close()
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    assert Records(run.place, plan.digest).done() == {0}
    assert run.strays() == []


def test_its_own_error_is_told_though_it_cannot_be_put_on_record(run: TinyRun) -> None:
    overwrite(run.checkpoints[-1], 3, "layers.3.weight", b"\xc0\x7f")
    plan = run.work_plan()
    run.place.write(FAILED, b"in the way")
    with pytest.raises(NonFinite, match=r"layers\.3\.weight") as caught:
        list(do_units(plan, [3], run.place))
    assert not may_pass(caught.value)
    assert run.strays() == []
    assert [sorted(files) for files in run.outputs()] == [[], []]


def test_a_record_that_cannot_be_written_is_why_a_unit_failed(run: TinyRun) -> None:
    """Whoever watches learns it from there."""
    plan = run.work_plan()
    run.place.write(DONE, b"in the way")
    with pytest.raises(OutputError, match=r"done/2\.json: cannot be written"):
        list(do_units(plan, [2], run.place))
    failure = Records(run.place, plan.digest).failure(2)
    assert isinstance(failure, OutputError)
    assert "done/2.json: cannot be written" in str(failure)


def test_an_output_folder_that_this_machine_does_not_see(run: TinyRun) -> None:
    plan = run.work_plan()
    run.folders[1].rmdir()
    with pytest.raises(OutputError, match=r"is not there on this machine .* every worker sees it") as caught:
        list(do_units(plan, [0], run.place))
    assert caught.value.file == str(run.folders[1])
    assert list(run.folders[0].iterdir()) == []


def test_a_checkpoint_that_changed_since_the_plan(run: TinyRun) -> None:
    plan = run.work_plan()
    overwrite(run.checkpoints[1], 3, "layers.3.weight", b"\x00\x01")
    with pytest.raises(SourceError, match="changed since the plan was made") as caught:
        list(do_units(plan, [0], run.place))
    assert (caught.value.file, caught.value.step) == (shard_file(3), 250)


def test_progress_of_what_is_done_now_alone(run: TinyRun) -> None:
    plan = run.work_plan()
    list(do_units(plan, [0, 1], run.place))
    progress = Counting()
    list(do_units(plan, [0, 1, 2], run.place, progress))
    assert progress.done == progress.announced == plan.bytes_of(2)


def test_a_shard_being_made_elsewhere_stays_and_a_dead_one_goes(tmp_path: Path) -> None:
    sinks = [LocalSink(tmp_path / "out", among_others=True) for _ in range(2)]
    first, other = (sink.open("model.safetensors", 3) for sink in sinks)
    third = sinks[0].open("other.safetensors", 1)
    assert len(list((tmp_path / "out").iterdir())) == 3
    other.write(0, memoryview(b"new"))
    assert other.finish().size == 3
    first.write(0, memoryview(b"new"))
    first.finish()
    os.close(third._descriptor)  # what a kill leaves: a file without its lock
    again = sinks[1].open("other.safetensors", 1)
    assert len(list((tmp_path / "out").iterdir())) == 2
    sinks[0].remove_unfinished()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    again.abort()
    third._descriptor = -1
    third.abort()
