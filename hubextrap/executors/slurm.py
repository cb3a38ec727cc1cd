"""Units as a job array of Slurm's, and a last step that begins when the array has ended.

The jobs are plain sbatch scripts, which ``submit --dry-run`` prints: numbers of units and a path. submitit
would pickle a function for them, and a pickle runs whatever it holds. No secret is in a script, which Slurm
keeps and shows: a job has the environment that sbatch is called in (its default), so HF_TOKEN, HF_HOME and
HF_ENDPOINT are there as they are here.

A task that is killed is lost with the units it had left. `hubextrap finish`, the last step, then submits
these alone again, and itself behind them. `SlurmExecutor.run` stays, watches, and submits them at once.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError, OutputError, SourceError, WrongArgument
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.watching import Jobs, Submitted, Watching
from hubextrap.foreign_data import shorten
from hubextrap.patience import retried
from hubextrap.redaction import redact
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.places import FolderPlace

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place

USUAL_ARRAY = 1001
"""Slurm's MaxArraySize where nobody has set another one."""
ANSWER_LIMIT = 10_000_000
"""Longest answer of a command in bytes: squeue has a line of some 15 for each task."""
ANSWER_SECONDS = 120.0
LOGS = "logs"
SPARE, PLAN_MEMORY = 1.25, 256
"""What a task asks for beyond the plan's peak memory, as Slurm kills what takes more: a factor, and MiB."""
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=[!$-&(-\[\]-~]+)?")
"""One long option, without what sbatch would read as its end: spaces, quotes, backslashes and #."""
_OURS = (
    *("array", "chdir", "clusters", "dependency", "error", "help", "input", "output", "parsable"),
    *("test-only", "usage", "version", "wait", "wrap"),
)
"""Options that would change what is submitted, where, or what sbatch answers."""
_SETTINGS = re.compile(
    r"SQUEUE_|SCANCEL_|(SBATCH|SLURM)_CLUSTERS$|SBATCH_(ARRAY_INX|CHDIR|DEPENDENCY|ERROR|INPUT|OUTPUT|WAIT)$"
)
"""Variables by which Slurm's commands would do, or answer, something else than they are asked."""
_NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|[Tt]ry again|[Tt]emporarily unable"
)
_REMEDY = "make room or check the folder's permissions, then submit again"

_HEAD = "#!/bin/bash\n# hubextrap {version}: {what}\n{options}\n"
_UNITS = """\
units=({units})
mine=()
for ((i = SLURM_ARRAY_TASK_ID; i < ${{#units[@]}}; i += {tasks})); do mine+=("${{units[i]}}"); done
exec {command} "${{mine[@]}}"
"""
_LAST = """\
for attempt in {attempts}; do
    {command} && exit 0
    code=$?
    [ -e {plan} ] || exit 0  # all was done, but for the removal of the plan's folder
    # killed, or out of reach of the Hub: once more, from where it was
    [ "$code" -eq 75 ] || [ "$code" -gt 128 ] || exit "$code"
done
exit "$code"
"""


class _NoAnswer(SourceError):
    """The controller did not answer; it may the next time."""


class SlurmExecutor(Watching):
    """Units in the tasks of a job array; the place is a folder that all nodes see under the same path."""

    name = "slurm"

    def __init__(self, options: Sequence[str] = (), tasks: int | None = None) -> None:
        """
        Args:
            options: sbatch's own, each one long option, as ``--partition=cpu``; they override ours.
            tasks: of an array, at most; as many as there are units, or as Slurm takes, if None.

        Raises:
            WrongArgument: an option is none, or is one that hubextrap sets.
        """
        self.options = tuple(_checked(option) for option in options)
        if tasks is not None and tasks < 1:
            raise WrongArgument(f"tasks: has to be at least 1, and is {tasks}")
        self.tasks = tasks

    def settings(self) -> dict[str, Any]:
        return {"options": list(self.options), "tasks": self.tasks}

    def dry_run(self, plan: Work, place: Place, units: Sequence[int]) -> str:
        tasks = min(len(units), self.tasks or USUAL_ARRAY)
        array = self._array_script(plan, _folder_of(place), units, tasks)
        return f"{array}\n{self._last_script(plan, _folder_of(place), ['ARRAY'])}"

    def start(self, plan: Work, place: Place, units: Sequence[int]) -> Jobs:
        tasks = min(len(units), self._most_tasks())
        folder = _folder_of(place)
        logs = folder / LOGS
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            said = f"{logs}: cannot be made: {error.strerror}; {_REMEDY}"
            raise OutputError(said, file=logs) from error
        job = _submitted(self._array_script(plan, folder, units, tasks))
        return {f"{job}_{task}": tuple(units[task::tasks]) for task in range(tasks)}

    def start_last(self, plan: Work, place: Place, after: Collection[str]) -> str:
        return _submitted(self._last_script(plan, _folder_of(place), _without_tasks(after)))

    def alive(self, jobs: Collection[str]) -> frozenset[str]:
        if not jobs:
            return frozenset()
        asked = ",".join(_without_tasks(jobs))
        # -r: each task that still waits on a line of its own; states that are over are not listed
        try:
            answer = _answer("squeue", "-h", "-r", "-o", "%i|%t|%r", "-j", asked)
        except HubExtrapError as error:
            if "Invalid job id" in str(error):  # it has forgotten the only one that it was asked for
                return frozenset()
            raise
        found = set()
        for line in answer.splitlines():
            row = re.fullmatch(r"(\d{1,20}(?:_\d{1,10})?)\|([A-Z]{1,3})\|([^|]{0,200})", line.strip())
            if row is None:
                said = f"squeue: answered {shorten(line)!r}, which is no line of ID|STATE|REASON"
                raise HubExtrapError(
                    f"{said}; check that squeue is Slurm's own, then run the same command again"
                )
            # Slurm holds a job that could not be launched until somebody releases it: for us, that is lost.
            if not (row[2] == "PD" and row[3].endswith(("requeued held", "requeued in held state"))):
                found.add(row[1])
        return frozenset(jobs) & found

    def cancel(self, jobs: Collection[str]) -> None:
        if jobs:
            _answer("scancel", *sorted(jobs))

    def logs(self, place: Place, job: str) -> str:
        file = _folder_of(place) / LOGS / f"{job}.out"
        try:
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - 4096))
                lines = opened.read(4096).decode(errors="replace").splitlines()
        except OSError:
            return f"{file} on the node that it ran on, or `sacct -j {job}`"
        last = next((line for line in reversed(lines) if line.strip()), None)
        return f"{file}, which is empty" if last is None else f"{file}, which ends: {shorten(last.strip())}"

    def commands(self, place: Place, jobs: Collection[str]) -> Submitted:
        ids = _without_tasks(jobs)
        return Submitted(tuple(ids), f"squeue -j {','.join(ids)}", f"scancel {' '.join(ids)}")

    def here(self) -> str | None:
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        if task is not None:
            return f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{task}"
        return os.environ.get("SLURM_JOB_ID")

    def _most_tasks(self) -> int:
        """How many tasks an array may have.

        Raises:
            HubExtrapError: fewer than asked for; or Slurm does not say.
        """
        said = _answer("scontrol", "show", "config")
        found = re.search(r"^MaxArraySize *= *(\d{1,9})$", said, re.MULTILINE)
        if found is None or (most := int(found[1])) < 1:
            raise HubExtrapError(
                "scontrol show config: states no MaxArraySize above 0, so that this cluster takes no job "
                "arrays; ask who runs it, or use `--executor ray`"
            )
        if self.tasks is not None and self.tasks > most:
            raise WrongArgument(f"tasks: this cluster's arrays have at most {most} tasks, not {self.tasks}")
        return self.tasks or most

    def _array_script(self, plan: Work, folder: Path, units: Sequence[int], tasks: int) -> str:
        own = [
            f"--array=0-{tasks - 1}",
            "--job-name=hubextrap",
            f"--output={_logs_pattern(folder, '%A_%a.out')}",
        ]
        what = f"{len(units)} units in {tasks} tasks"
        numbers = textwrap.fill(" ".join(str(int(unit)) for unit in units), 100)
        body = _UNITS.format(units=numbers, tasks=tasks, command=_command("worker", folder))
        return self._head(plan, what, own) + body

    def _last_script(self, plan: Work, folder: Path, after: Collection[str]) -> str:
        own = [
            *([f"--dependency=afterany:{':'.join(after)}"] if after else []),
            "--job-name=hubextrap-finish",
            f"--output={_logs_pattern(folder, '%j.out')}",
        ]
        attempts = " ".join(str(attempt) for attempt in range(1, RETRIES + 2))
        plan_file = shlex.quote(str(folder / PLAN_FILE))
        body = _LAST.format(attempts=attempts, command=_command("finish", folder), plan=plan_file)
        return self._head(plan, "the last step", own) + body

    def _head(self, plan: Work, what: str, own: Sequence[str]) -> str:
        from hubextrap import __version__

        need = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={plan.threads}"]
        need += ["--requeue", "--chdir=/"]
        if not any(re.match("--mem(=|-per-)", option) for option in self.options):  # they exclude each other
            need.append(f"--mem={round(plan.peak_memory * SPARE / 2**20) + PLAN_MEMORY}M")
        lines = "\n".join(f"#SBATCH {option}" for option in (*own, *need, *self.options))
        return _HEAD.format(version=__version__, what=what, options=lines)


def _submitted(script: str) -> str:
    """The id of the job that sbatch made of a script."""
    answer = _answer("sbatch", "--parsable", script=script).strip()
    if re.fullmatch(r"\d{1,20}", answer) is None:
        raise HubExtrapError(
            f"sbatch: answered {shorten(answer)!r}, which is no job's number; look with `squeue --me` "
            "whether there is a job, cancel it, and check that sbatch is Slurm's own"
        )
    return answer


def _answer(program: str, *arguments: str, script: str | None = None) -> str:
    """What one of Slurm's commands prints, asked again while the controller does not answer.

    Raises:
        SourceError: the controller gives no answer. HubExtrapError: the command is not there, or failed.
    """
    return retried(
        lambda: _asked(program, arguments, script), worth=lambda error: isinstance(error, _NoAnswer)
    )


def _asked(program: str, arguments: Sequence[str], script: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if not _SETTINGS.match(name)}
    try:
        ran = subprocess.run(
            [program, *arguments],
            input=(script or "").encode(),
            capture_output=True,
            env=environment | {"LC_ALL": "C"},
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise HubExtrapError(
            f"{program}: not found; run this on a login node of the Slurm cluster, where {program} is, print "
            "the scripts with `--dry-run`, or use `--executor ray`"
        ) from None
    except OSError as error:
        raise HubExtrapError(f"{program}: cannot be run: {error.strerror}; check its permissions") from error
    except subprocess.TimeoutExpired:
        said = f"{program}: no answer within {ANSWER_SECONDS:.0f} s; look with `sinfo` whether Slurm is up"
        raise _NoAnswer(f"{said}, then run the same command again") from None
    complaint = " ".join(ran.stderr[:ANSWER_LIMIT].decode(errors="replace").split())
    if ran.returncode and _NO_ANSWER.search(complaint):
        raise _NoAnswer(f"{program}: {shorten(complaint, 1000)}; run the same command again when Slurm is up")
    if ran.returncode or len(ran.stdout) > ANSWER_LIMIT:
        what = complaint or f"ended with {ran.returncode} and said nothing"
        said = f"{program}: {shorten(what, 1000)}; put right what it says, then run the same command again"
        raise HubExtrapError(said)
    return ran.stdout.decode(errors="replace")


def _checked(option: str) -> str:
    """One long option of sbatch's.

    Raises:
        WrongArgument: it is none, it holds a secret, or hubextrap sets it.
    """
    found = _OPTION.fullmatch(option)
    if found is None:
        raise WrongArgument(
            f"sbatch option {option!r}: write one long option, --name or --name=value, without spaces, "
            "quotes, backslashes and #, e.g. --partition=cpu"
        )
    if redact(option) != option:
        raise WrongArgument(
            f"sbatch option {option!r}: it holds a secret, and Slurm shows scripts to others; set HF_TOKEN "
            "in the environment that you submit from, which the jobs get"
        )
    # sbatch takes the beginning of a name for the name
    if any(name.startswith(found[1]) for name in _OURS):
        raise WrongArgument(f"sbatch option {option!r}: hubextrap sets it; leave it out")
    return option


def _without_tasks(jobs: Collection[str]) -> list[str]:
    """The numbers of jobs and of tasks' arrays, once each, in their order."""
    return sorted({job.partition("_")[0] for job in jobs}, key=lambda job: (len(job), job))


def _command(verb: str, folder: Path) -> str:
    return shlex.join([sys.executable, "-m", "hubextrap", verb, str(folder)])


def _folder_of(place: Place) -> Path:
    """
    Raises:
        WrongArgument: it is none.
    """
    if not isinstance(place, FolderPlace):
        raise WrongArgument(f"{place.name}: Slurm's nodes need a folder that all of them see; give --out one")
    return place.folder


def _logs_pattern(folder: Path, pattern: str) -> str:
    """Where jobs print to, as a script says it: % and quotes are sbatch's.

    Raises:
        WrongArgument: the folder's name is beyond what a script can say.
    """
    name = str(folder / LOGS)
    if not name.isprintable() or "\\" in name:
        said = f"{name}: an sbatch script cannot name a folder with control characters or backslashes"
        raise WrongArgument(f"{said}; choose another one", file=name)
    quoted = name.replace("%", "%%").replace('"', '\\"')
    return f'"{quoted}/{pattern}"'
