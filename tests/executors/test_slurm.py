"""Slurm: what is handed to sbatch, what its commands answer, and what happens to lost tasks."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Lines
from slurm_clusters import FakeSlurm

from hubextrap.errors import HubExtrapError, OutputError, SourceError, WrongArgument
from hubextrap.executors import slurm
from hubextrap.executors.detached import executor_of
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.slurm import SlurmExecutor
from hubextrap.executors.submission import SUBMITTED, Submission
from hubextrap.executors.testing import ExecutorTests
from hubextrap.executors.testing_run import SHARDS, TinyRun, shard_file
from hubextrap.progress import SilentProgress
from hubextrap.work.bucket import BucketPlace
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import Record, Records

EVERY = tuple(range(SHARDS))


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    cluster = FakeSlurm(tmp_path_factory.mktemp("slurm"), monkeypatch)
    yield cluster
    cluster.close()


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlurmExecutor, "interval", 0.05)
    monkeypatch.setattr(SlurmExecutor, "settle", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    return TinyRun.write(tmp_path / "run")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> WorkPlan:
    """For those who only look at it."""
    return TinyRun.write(tmp_path_factory.mktemp("plan") / "run").work_plan()


PLACE = FolderPlace(Path("/shared/.out.partial/work"))


@pytest.mark.slow
class TestSlurm(ExecutorTests):
    workers = 2

    @pytest.fixture
    def executor(self, cluster: FakeSlurm, request: pytest.FixtureRequest) -> Iterator[SlurmExecutor]:
        self.cluster = cluster
        # units of one task wait for each other
        yield SlurmExecutor(tasks=None if "slow_unit" in request.node.name else 2)
        cluster.wait()  # nobody is left; a worker ends after its last record

    def worker_pids(self) -> list[int]:
        return list(self.cluster.processes())


# what is handed over


def test_the_scripts_say_all_and_nothing_is_written(
    plan: WorkPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secretly" * 4)
    before = sorted(tmp_path.rglob("*"))
    queue = SlurmExecutor(["--partition=cpu", "--time=2:00:00"], tasks=3)
    said = queue.dry_run(plan, PLACE, EVERY)
    assert sorted(tmp_path.rglob("*")) == before
    array, last = said.split("\n\n")
    memory = round(plan.merge.peak_memory * 1.25 / 2**20) + 256
    logs = Path(PLACE.name, "logs")
    for line in (
        "#SBATCH --array=0-2",
        "#SBATCH --cpus-per-task=1",
        f"#SBATCH --mem={memory}M",
        "#SBATCH --requeue",
        "#SBATCH --partition=cpu",
        "#SBATCH --time=2:00:00",
        f'#SBATCH --output="{logs}/%A_%a.out"',
    ):
        assert line in array.splitlines()
    assert "units=(0 1 2 3 4 5 6)" in array
    assert f"exec {sys.executable} -m hubextrap worker {PLACE.name} " in array
    assert "#SBATCH --dependency=afterany:ARRAY" in last.splitlines()
    assert f"{sys.executable} -m hubextrap finish {PLACE.name} " in last
    assert "secretly" not in said
    for script in (array, last):
        subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("units", "tasks"), [(7, 3), (7, 7), (2, 5), (1, 1)])
def test_tasks_divide_the_units_between_them(units: int, tasks: int, plan: WorkPlan) -> None:
    script = SlurmExecutor(tasks=tasks).dry_run(plan, PLACE, range(10, 10 + units))
    body = script.split("\n\n")[0].replace("exec ", "echo ")
    count = min(units, tasks)
    assert f"#SBATCH --array=0-{count - 1}\n" in body
    done = []
    for task in range(count):
        ran = subprocess.run(
            ["/bin/bash"],
            input=body,
            env={"SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
            check=True,
        )
        done.append([int(word) for word in ran.stdout.split()[5:]])
    assert done == [list(range(10, 10 + units))[task::count] for task in range(count)]


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a$HOME`id`", "a%d", "a#b", "ä;b&c", "-n"])
def test_any_name_of_a_folder(name: str, tmp_path: Path, plan: WorkPlan) -> None:
    """The shell and sbatch each read it as it is."""
    place = FolderPlace(tmp_path / name / "work")
    for script in SlurmExecutor().dry_run(plan, place, [0]).split("\n\n"):
        command = next(line for line in script.splitlines() if " -m hubextrap " in line)
        assert str(place.folder) in shlex.split(command.replace("&& exit 0", ""))
        output = next(line for line in script.splitlines() if "--output" in line)
        (read,) = shlex.split(output.removeprefix("#SBATCH "), comments=True)
        assert read.startswith(f"--output={str(place.folder).replace('%', '%%')}/logs/%")


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\x1bb", "a\udcffb"])
def test_a_folder_that_no_script_can_name(name: str, tmp_path: Path, plan: WorkPlan) -> None:
    with pytest.raises(WrongArgument, match="cannot name a folder with"):
        SlurmExecutor().dry_run(plan, FolderPlace(tmp_path / name), [0])


@pytest.mark.parametrize(
    "option",
    [
        *("--partition=cpu", "--time=2:00:00", "--gres=gpu:h200:1", "--exclusive", "--mem=10G", "--hold"),
        *("--mail-user=a@b.c", "--constraint=[a&b]|c*2", "--export=NONE", "--wait-all-nodes=1"),
    ],
)
def test_options_that_are_passed_on(option: str, plan: WorkPlan) -> None:
    said = SlurmExecutor([option]).dry_run(plan, PLACE, [0])
    assert said.splitlines().count(f"#SBATCH {option}") == 2


@pytest.mark.parametrize(
    "option",
    [
        *("", "cpu", "-p cpu", "--partition cpu", "--partition=cpu\n#SBATCH --array=1", "--Partition=x"),
        *(
            '--comment="a"',
            "--comment=a'",
            "--comment=a#b",
            "--comment=a\\b",
            "--comment=ä",
            "--",
            "--a=\x00",
        ),
    ],
)
def test_what_is_no_single_option(option: str) -> None:
    with pytest.raises(WrongArgument, match="write one long option"):
        SlurmExecutor([option])


@pytest.mark.parametrize(
    "option",
    ["--array=0-9", "--arr=0", "--dependency=afterok:1", "--wrap=id", "--output=x", "--wait", "--parsable"],
)
def test_what_hubextrap_sets_itself(option: str) -> None:
    with pytest.raises(WrongArgument, match="hubextrap sets it"):
        SlurmExecutor([option])


def test_an_option_that_holds_a_secret() -> None:
    secret = "hf_" + "abcdefgh" * 4
    with pytest.raises(WrongArgument, match="holds a secret") as caught:
        SlurmExecutor([f"--export=ALL,HF_TOKEN={secret}"])
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "memories"), [("--mem-per-cpu=2G", 2), ("--mem=2G", 2), ("--mem-bind=local", 4)]
)
def test_own_memory_takes_the_place_of_ours(option: str, memories: int, plan: WorkPlan) -> None:
    said = SlurmExecutor([option]).dry_run(plan, PLACE, [0])
    assert said.count("#SBATCH --mem") == memories
    assert said.count(f"#SBATCH {option}\n") == 2


# what Slurm answers


class Program:
    """Puts one of Slurm's programs in place of the cluster's that prints and ends as is said."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    def answers(self, name: str, said: str = "", error: str = "", code: int = 0) -> None:
        program = self.folder / name
        lines = [f"printf %s {shlex.quote(said)}", f"printf %s {shlex.quote(error)} >&2", f"exit {code}"]
        program.write_text("\n".join(["#!/bin/sh", "cat > /dev/null", *lines]))
        program.chmod(0o755)


@pytest.fixture
def program(cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(tmp_path / "programs", monkeypatch)


def test_no_slurm_here(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HubExtrapError, match=r"scontrol: not found; .*login node.*--dry-run.*--executor ray"):
        SlurmExecutor().submit(run.work_plan(), run.place, EVERY)


def test_what_sbatch_complains_of_is_the_error(cluster: FakeSlurm, run: TinyRun) -> None:
    plan = run.work_plan()
    with pytest.raises(HubExtrapError, match="Invalid partition name specified") as caught:
        SlurmExecutor(["--partition=gpu"]).submit(plan, run.place, EVERY)
    assert "\n" not in str(caught.value)
    assert run.place.read(SUBMITTED) is None
    assert cluster.queue() == []


@pytest.mark.parametrize("said", ["", "12\n13", "Submitted batch job 12", "12;other", "-1", "9" * 30])
def test_an_answer_of_sbatch_that_is_no_number(said: str, program: Program, run: TinyRun) -> None:
    program.answers("sbatch", said)
    with pytest.raises(HubExtrapError, match="which is no job's number"):
        SlurmExecutor().submit(run.work_plan(), run.place, EVERY)


@pytest.mark.parametrize("said", ["12", "12|R", "12_[3-5]|PD|None", "x|R|None", "12_3|R|None|x"])
def test_an_answer_of_squeue_that_is_no_table(said: str, program: Program) -> None:
    program.answers("squeue", f"12_1|R|None\n{said}\n")
    with pytest.raises(HubExtrapError, match=r"no line of ID\|STATE\|REASON"):
        SlurmExecutor().alive(["12_1", "12_3"])


def test_which_jobs_are_alive(program: Program) -> None:
    states = [
        "1_0|R|None",
        "1_1|PD|Resources",
        "1_2|CG|None",
        "1_3|PD|launch failed requeued held",
        "2|PD|Dependency",
    ]
    program.answers("squeue", "\n".join([*states, "77|R|None"]))
    alive = SlurmExecutor().alive(["1_0", "1_1", "1_2", "1_3", "1_4", "2"])
    assert alive == {"1_0", "1_1", "1_2", "2"}
    program.answers("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert SlurmExecutor().alive(["1_0"]) == frozenset()
    program.answers("squeue", error="squeue: error: no such option", code=1)
    with pytest.raises(HubExtrapError, match="no such option"):
        SlurmExecutor().alive(["1_0"])


def test_an_answer_without_end(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ANSWER_LIMIT", 1000)
    program.answers("squeue", "1_0|R|None\n" * 100)
    with pytest.raises(HubExtrapError, match="squeue"):
        SlurmExecutor().alive(["1_0"])


def test_a_command_that_hangs(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ANSWER_SECONDS", 0.05)
    (program.folder / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (program.folder / "squeue").chmod(0o755)
    with pytest.raises(SourceError, match="no answer within"):
        SlurmExecutor().alive(["1_0"])


def test_variables_that_would_change_what_is_asked(
    cluster: FakeSlurm, run: TinyRun, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    (program.folder / "squeue").write_text("#!/bin/sh\nenv > $FAKE_SLURM/squeue.env\n")
    (program.folder / "squeue").chmod(0o755)
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SBATCH_ARRAY_INX", "SBATCH_ACCOUNT", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "x")
    SlurmExecutor().alive(["1"])
    seen = (cluster.state / "squeue.env").read_text()
    assert "SBATCH_ACCOUNT=x" in seen
    assert "SQUEUE" not in seen
    assert "ARRAY" not in seen
    assert "CLUSTERS" not in seen


@pytest.mark.parametrize(
    ("config", "tasks", "said"),
    [
        ("MaxArraySize            = 5", 6, "at most 5 tasks, not 6"),
        ("MaxArraySize            = 0", None, "takes no job arrays"),
        ("MaxJobCount = 7", None, "takes no job arrays"),
    ],
)
def test_more_tasks_than_slurm_takes(
    config: str, tasks: int | None, said: str, cluster: FakeSlurm, run: TinyRun
) -> None:
    (cluster.state / "config").write_text(config)
    with pytest.raises(HubExtrapError, match=said):
        SlurmExecutor(tasks=tasks).submit(run.work_plan(), run.place, EVERY)
    assert cluster.calls("sbatch") == []


def test_as_many_tasks_as_slurm_takes(
    cluster: FakeSlurm, run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    (cluster.state / "config").write_text("MaxArraySize            = 5")
    SlurmExecutor().submit(run.work_plan(), run.place, EVERY)
    assert "#SBATCH --array=0-4\n" in cluster.script("1")


# who does what again


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Jobs do nothing: none before the file is there, whose content is then what each runs."""
    go, program = tmp_path / "go", tmp_path / "idle"
    program.write_text(f"#!/bin/sh\nwhile ! [ -e {go} ]; do sleep 0.02; done\n. {go}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return go


def _in_queue(queue: SlurmExecutor, run: TinyRun) -> set[int]:
    """The units whose jobs are still there."""
    submitted = Submission.load(run.place)
    assert submitted is not None
    return {unit for job in queue.alive(submitted.jobs) for unit in submitted.jobs[job]}


@pytest.mark.slow
def test_submitted_twice_is_submitted_once(cluster: FakeSlurm, run: TinyRun, idle: Path) -> None:
    plan, queue = run.work_plan(), SlurmExecutor(tasks=2)
    first = queue.submit(plan, run.place, EVERY)
    assert first.ids == ("1", "2")
    assert first.how_to_watch == "squeue -j 1,2"
    assert first.how_to_cancel == "scancel 1 2"
    assert queue.submit(plan, run.place, EVERY) == first
    assert _in_queue(queue, run) == set(EVERY)
    assert len(cluster.calls("sbatch")) == 2
    idle.write_text("exit 0")
    cluster.wait()
    assert _in_queue(queue, run) == frozenset()
    assert queue.submit(plan, run.place, [3, 5]).ids == ("3", "4")
    assert "units=(3 5)" in cluster.script("3")
    assert "afterany:3\n" in cluster.script("4")


@pytest.mark.slow
def test_killed_between_the_array_and_the_last_step(cluster: FakeSlurm, run: TinyRun, idle: Path) -> None:
    """The next one finds the array, and puts one last step behind it."""
    plan, queue = run.work_plan(), SlurmExecutor(tasks=2)
    jobs = queue.start(plan, run.place, EVERY)
    Submission("slurm", queue.settings(), plan.digest, jobs, None, len(EVERY)).save(run.place)
    assert queue.submit(plan, run.place, EVERY).ids == ("1", "2")
    assert "units" not in cluster.script("2")
    assert "afterany:1\n" in cluster.script("2")


@pytest.mark.slow
def test_a_last_step_that_comes_after_another_has_cleared_up(
    cluster: FakeSlurm, run: TinyRun, idle: Path
) -> None:
    """It has nowhere to write what it prints, and leaves the queue."""
    plan, queue = run.work_plan(), SlurmExecutor(tasks=2)
    (run.place.folder / "logs").mkdir(parents=True)
    (cluster.state / "held").touch()
    last = queue.start_last(plan, run.place, [])
    shutil.rmtree(run.place.folder)
    (cluster.state / "held").unlink()
    cluster.wait(10)
    assert f"{last} [Errno 2]" in (cluster.state / "ended").read_text()


@pytest.mark.slow
def test_a_last_step_that_cannot_be_submitted_takes_the_array_with_it(
    cluster: FakeSlurm, run: TinyRun, idle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise OutputError("no more jobs for you")

    monkeypatch.setattr(SlurmExecutor, "start_last", refuse)
    with pytest.raises(OutputError, match="no more jobs"):
        SlurmExecutor(tasks=2).submit(run.work_plan(), run.place, EVERY)
    cluster.wait()


@pytest.mark.slow
def test_what_is_lost_is_submitted_again_while_something_is_gained(
    cluster: FakeSlurm, run: TinyRun, idle: Path
) -> None:
    idle.write_text("echo 'no memory left' >&2; exit 1")
    plan, queue = run.work_plan(), SlurmExecutor(tasks=2)
    queue.submit(plan, run.place, EVERY)
    for missing in (5, *[3] * (RETRIES + 1)):
        cluster.wait()
        again = queue.resubmit(plan, run.place, EVERY[:missing])
        assert again is not None
        assert f"units=({' '.join(map(str, EVERY[:missing]))})" in cluster.script(again.ids[0])
    cluster.wait()
    with pytest.raises(
        OutputError, match=f"{RETRIES + 1} times the workers were lost.*no memory left"
    ) as caught:
        queue.resubmit(plan, run.place, EVERY[:3])
    assert caught.value.file == shard_file(0)
    # a user's submit begins to count anew
    assert queue.submit(plan, run.place, EVERY[:3]) is not None
    cluster.wait()
    assert queue.resubmit(plan, run.place, EVERY[:3]) is not None


@pytest.mark.slow
def test_what_failed_for_good_is_not_submitted_again(cluster: FakeSlurm, run: TinyRun, idle: Path) -> None:
    plan, queue = run.work_plan(), SlurmExecutor()
    records = Records(run.place, plan.digest)
    for unit in (0, 1):
        records.fail(unit, HubExtrapError("a wrong checkpoint"))
    assert queue.resubmit(plan, run.place, [0, 1]) is None
    assert cluster.calls("sbatch") == []
    assert queue.resubmit(plan, run.place, [0, 1, 2]) is not None
    assert "units=(2)" in cluster.script("1")
    assert queue.submit(plan, run.place, [0, 1, 2]) is not None  # whoever submits has put it right
    assert records.failure(0) is None


def test_the_executor_is_made_again_from_what_is_on_record(
    cluster: FakeSlurm, run: TinyRun, idle: Path
) -> None:
    plan = run.work_plan()
    SlurmExecutor(["--time=5"], tasks=2).submit(plan, run.place, EVERY)
    found = Submission.load(run.place)
    assert found is not None
    again = executor_of(found)
    assert isinstance(again, SlurmExecutor)
    assert (again.options, again.tasks) == (("--time=5",), 2)
    assert found.jobs == {"1_0": (0, 2, 4, 6), "1_1": (1, 3, 5)}
    assert found.last == "2"


@pytest.mark.parametrize(
    "damage",
    [
        lambda stated: stated | {"jobs": {"1": [-1]}},
        lambda stated: stated | {"jobs": {"1": ["0"]}},
        lambda stated: stated | {"jobs": []},
        lambda stated: stated | {"plan": 3},
        lambda stated: stated | {"more": 1},
        lambda stated: {},
        lambda stated: [],
    ],
)
def test_a_record_of_jobs_that_is_none(damage: object, run: TinyRun) -> None:
    assert callable(damage)
    stated = {"executor": "slurm", "settings": {}, "plan": "x", "jobs": {"1": [0]}}
    run.place.write(SUBMITTED, json.dumps(damage(stated)).encode())
    with pytest.raises(
        HubExtrapError, match="cancel those that are still in the queue, remove the file"
    ) as caught:
        Submission.load(run.place)
    assert caught.value.file == f"{run.place.name}/{SUBMITTED}"


@pytest.mark.parametrize("stated", [("fax", {}), ("slurm", {"tusks": 1})])
def test_a_record_of_another_executor(stated: tuple[str, dict[str, object]]) -> None:
    with pytest.raises(HubExtrapError, match="cancel what is still in the queue"):
        executor_of(Submission(*stated, "plan"))


# who waits


@pytest.mark.slow
def test_a_driver_takes_over_the_jobs_of_one_that_was_killed(
    cluster: FakeSlurm, run: TinyRun, idle: Path
) -> None:
    plan, queue = run.work_plan(), SlurmExecutor(tasks=2)
    jobs = queue.start(plan, run.place, EVERY)
    Submission("slurm", queue.settings(), plan.digest, jobs, None, len(EVERY)).save(run.place)
    records = queue.run(plan, run.place, EVERY, SilentProgress())
    Records(run.place, plan.digest).put(made := Record(3, plan.digest, {}))
    assert next(records) == made
    records.close()
    cluster.wait()
    assert len(cluster.calls("sbatch")) == 1
    assert Submission.load(run.place) is None


@pytest.mark.slow
def test_a_unit_whose_worker_is_lost_every_time(
    cluster: FakeSlurm, run: TinyRun, idle: Path, lines: Lines
) -> None:
    idle.write_text("echo 'out of memory' >&2; exit 137")
    plan = run.work_plan()
    with pytest.raises(
        OutputError, match=f"lost {RETRIES + 1} times; see .*logs/4_0.out.*out of memory"
    ) as caught:
        # one task for both: two could be lost one after the other, and be submitted again one by one
        list(SlurmExecutor(tasks=1).run(plan, run.place, [2, 4], lines))
    assert caught.value.file == shard_file(2)
    assert len(cluster.calls("sbatch")) == RETRIES + 1
    assert sum("the worker was lost" in line for line in lines.said) == RETRIES


@pytest.mark.slow
def test_a_queue_that_gives_no_answer_for_a_while(cluster: FakeSlurm, run: TinyRun, idle: Path) -> None:
    plan, queue = run.work_plan(), SlurmExecutor(tasks=1)
    jobs = queue.start(plan, run.place, [1])
    Submission("slurm", queue.settings(), plan.digest, jobs, None, 1).save(run.place)
    records = queue.run(plan, run.place, [1, 2], SilentProgress())
    Records(run.place, plan.digest).put(Record(2, plan.digest, {}))
    assert next(records)
    (cluster.state / "down").touch()
    Records(run.place, plan.digest).put(Record(1, plan.digest, {}))
    assert [one.unit for one in records] == [1]
    (cluster.state / "down").unlink()
    queue.cancel(["1"])


@pytest.mark.slow
def test_a_queue_that_gives_no_answer_for_too_long(
    cluster: FakeSlurm, run: TinyRun, monkeypatch: pytest.MonkeyPatch, idle: Path
) -> None:
    monkeypatch.setattr(SlurmExecutor, "patience", 0.0)
    plan, queue = run.work_plan(), SlurmExecutor(tasks=1)
    jobs = queue.start(plan, run.place, [1])
    Submission("slurm", queue.settings(), plan.digest, jobs, None, 1).save(run.place)
    (cluster.state / "down").touch()
    with pytest.raises(SourceError, match="Unable to contact slurm controller"):
        list(queue.run(plan, run.place, [1], SilentProgress()))


def test_a_place_that_nodes_cannot_see(plan: WorkPlan) -> None:
    with pytest.raises(WrongArgument, match="hf://buckets/me/work/x: Slurm's nodes need a folder"):
        SlurmExecutor().dry_run(plan, BucketPlace("hf://buckets/me/work/x"), [0])
