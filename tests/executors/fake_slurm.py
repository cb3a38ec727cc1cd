"""What sbatch, squeue, scancel and scontrol do, as far as hubextrap asks them, with processes here.

Called as ``python fake_slurm.py PROGRAM ARGUMENT…``. The folder FAKE_SLURM holds the state: the file
``tasks/ID`` or ``tasks/ID_TASK`` is there as long as that job is in the queue, and says ``PD`` or ``R PID``.
``down`` is there while the controller gives no answer, ``held`` while no job begins.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
TASKS = STATE / "tasks"
SLOTS = 2
LIFE = 240.0


def main(program: str, arguments: list[str]) -> int:
    TASKS.mkdir(exist_ok=True)
    with (STATE / "calls").open("a") as calls:
        calls.write(shlex.join([program, *arguments]) + "\n")
    if (STATE / "down").exists():
        return refused(f"{program}: error: Unable to contact slurm controller (connect failure)")
    if program == "scontrol":
        print(
            (STATE / "config").read_text()
            if (STATE / "config").exists()
            else "MaxArraySize            = 1001"
        )
        return 0
    return {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "control": control}[program](arguments)


def refused(what: str) -> int:
    print(what, file=sys.stderr)
    return 1


def options_of(script: str) -> dict[str, str]:
    """The script's options, read as sbatch does; the last one of a name counts."""
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line.removeprefix("#SBATCH "), comments=True) for line in lines]
    assert all(len(word) == 1 and word[0].startswith("--") for word in words), words
    return {name: value for name, _, value in (word[0][2:].partition("=") for word in words)}


def sbatch(arguments: list[str]) -> int:
    script = sys.stdin.read()
    options = options_of(script)
    if options.get("partition", "cpu") != "cpu":
        return refused("sbatch: error: Batch job submission failed: Invalid partition name specified")
    with (STATE / "number").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(".")
        file.flush()
        job = file.tell()
    (STATE / f"{job}.sh").write_text(script)
    for task in tasks_of(str(job), options):
        (TASKS / task).write_text("PD")
    subprocess.Popen(
        [sys.executable, "-ISs", __file__, "control", str(job)],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(STATE / "control.log").open("a"),
    )
    print(job)
    return 0


def tasks_of(job: str, options: dict[str, str]) -> list[str]:
    if "array" not in options:
        return [job]
    first, last = map(int, options["array"].split("-"))
    return [f"{job}_{task}" for task in range(first, last + 1)]


def control(arguments: list[str]) -> int:
    """The life of one job: wait for those that it depends on, and run its tasks, two at a time."""
    (job,) = arguments
    try:
        return live(job)
    finally:  # whatever has gone wrong, no job stays in the queue that nobody runs
        for task in tasks_of(job, options_of((STATE / f"{job}.sh").read_text())):
            (TASKS / task).unlink(missing_ok=True)


def live(job: str) -> int:
    note_pid(os.getpid())
    script = (STATE / f"{job}.sh").read_text()
    options = options_of(script)
    kind, *after = options.get("dependency", "afterany").split(":")
    assert kind == "afterany"
    deadline = time.monotonic() + LIFE
    while (STATE / "held").exists() or any(in_queue(other) for other in after):
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.02)
    waiting, running = tasks_of(job, options), {}
    while waiting or running:
        for task, process in list(running.items()):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                (TASKS / task).unlink(missing_ok=True)
                (STATE / "ended").open("a").write(f"{task} {process.wait()}\n")
                del running[task]
        while waiting and len(running) < SLOTS:
            task = waiting.pop(0)
            with alone():
                if (TASKS / task).exists() and time.monotonic() < deadline:  # else it was cancelled
                    try:
                        running[task] = begin(task, script, options)
                    except OSError as error:  # its output's folder has gone: the job has failed
                        (TASKS / task).unlink()
                        (STATE / "ended").open("a").write(f"{task} {error}\n")
        time.sleep(0.01)
    return 0


def in_queue(job: str) -> bool:
    return any(task.name.partition("_")[0] == job for task in TASKS.iterdir())


def begin(task: str, script: str, options: dict[str, str]) -> subprocess.Popen[bytes]:
    job, _, number = task.partition("_")
    names = {"%A": job, "%a": number, "%j": job, "%%": "%"}
    output, rest = "", options["output"]
    while rest:
        taken = next((name for name in names if rest.startswith(name)), rest[0])
        output, rest = output + names.get(taken, taken), rest[len(taken) :]
    environment = {"SLURM_JOB_ID": job}
    if number:
        environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": number}
    with Path(output).open("ab") as printed:
        process = subprocess.Popen(
            ["/bin/bash", "-c", script],
            cwd=options["chdir"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key[:6] != "SLURM_"} | environment,
        )
    note_pid(process.pid)
    (TASKS / task).write_text(f"R {process.pid}")
    return process


def note_pid(pid: int) -> None:
    with (STATE / "pids").open("a") as pids:
        pids.write(f"{pid}\n")


def squeue(arguments: list[str]) -> int:
    assert arguments[:4] == ["-h", "-r", "-o", "%i|%t|%r"], arguments
    jobs = arguments[arguments.index("-j") + 1].split(",")
    if len(jobs) == 1 and not in_queue(jobs[0]):
        return refused("slurm_load_jobs error: Invalid job id specified")
    for task in sorted(TASKS.iterdir()):
        if task.name.partition("_")[0] in jobs:
            with suppress(FileNotFoundError):
                runs = task.read_text().startswith("R")
                print(f"{task.name}|R|None" if runs else f"{task.name}|PD|Resources")
    return 0


def scancel(arguments: list[str]) -> int:
    with alone():
        for task in list(TASKS.iterdir()):
            if task.name in arguments or task.name.partition("_")[0] in arguments:
                with suppress(FileNotFoundError, ProcessLookupError):
                    state, _, pid = task.read_text().partition(" ")
                    if state == "R":
                        os.killpg(int(pid), signal.SIGTERM)
                    else:
                        task.unlink()
    return 0


@contextmanager
def alone() -> Iterator[None]:
    """No task begins while one is cancelled: a task is in the queue, or it runs, or it is gone."""
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
