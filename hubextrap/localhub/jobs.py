"""Jobs: commands that a client has run, each as a process on this machine.

Nothing shuts such a process in: it may do what the hub's own user may. So a hub runs jobs only if it is
started for that, and only for tokens that may write.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FINISHED = ("COMPLETED", "CANCELED", "ERROR")
MOST = 256
"""Jobs of a hub that have not ended."""
_SLOTS = 8  # jobs that run at the same time; the others wait
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_POLL = 0.02  # seconds
_GRACE = 5.0  # seconds to clear up in, once a job is told to end
_PINNED = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[A-Za-z0-9_.,-]*\])?==([^\s,;*]+)")


@dataclass(frozen=True)
class JobSpec:
    """What a client asks for."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    image: str
    flavor: str
    labels: Mapping[str, str]
    attempts: int
    timeout: float
    """Seconds, of all attempts together."""


@dataclass(eq=False)
class Job:
    """One job; times are in seconds since the epoch."""

    id: str
    owner: str
    spec: JobSpec
    log: Path
    created: float
    stage: str = "SCHEDULING"
    message: str | None = None
    started: float | None = None
    finished: float | None = None
    process: subprocess.Popen[bytes] | None = None
    canceled: threading.Event = field(default_factory=threading.Event)

    def end(self, stage: str, message: str | None = None) -> None:
        """It has ended, well or not."""
        self.finished = time.time()
        self.stage, self.message = stage, message


class Jobs:
    """The jobs of one run of a hub; they end with it.

    Attributes:
        environment: variables of every job, under those that the job has of its own.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: for what jobs say and write; what a hub before this one left there is removed.
        """
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        self.environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self._jobs: dict[str, Job] = {}
        self._threads: list[threading.Thread] = []
        self._slots = threading.BoundedSemaphore(_SLOTS)
        self._lock = threading.Lock()

    def submit(self, owner: str, spec: JobSpec) -> Job:
        """Have a job run as soon as there is room.

        Raises:
            OverflowError: too many have not ended yet.
        """
        number = secrets.token_hex(12)
        job = Job(number, owner, spec, self.folder / f"{number}.log", time.time())
        job.log.touch()
        with self._lock:
            if sum(one.stage not in FINISHED for one in self._jobs.values()) >= MOST:
                raise OverflowError(f"{MOST} jobs have not ended yet")
            self._jobs[number] = job
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._run, args=(job,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return job

    def get(self, owner: str, number: str) -> Job:
        """One job of a user. Raises KeyError where there is none."""
        job = self._jobs[number]
        if job.owner != owner:
            raise KeyError(number)
        return job

    def of(self, owner: str) -> list[Job]:
        """The jobs of a user, the newest first."""
        with self._lock:
            return [job for job in reversed(self._jobs.values()) if job.owner == owner]

    def processes(self) -> dict[str, int]:
        """The process that leads each running job, by the job's id."""
        with self._lock:
            running = {number: job.process for number, job in self._jobs.items()}
        return {n: process.pid for n, process in running.items() if process and process.returncode is None}

    def stop(self) -> None:
        """End all jobs."""
        with self._lock:
            for job in self._jobs.values():
                job.canceled.set()
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, job: Job) -> None:
        while not self._slots.acquire(timeout=_POLL):
            if job.canceled.is_set():
                job.end("CANCELED")
                return
        try:
            self._attempts(job)
        except (OSError, ValueError) as error:  # the command cannot be run here, or the disk is full
            job.end("ERROR", f"Job failed to start: {error}")
        finally:
            self._slots.release()

    def _attempts(self, job: Job) -> None:
        command = command_here(job.spec.command)
        job.started = time.time()
        job.stage = "RUNNING"
        deadline = time.monotonic() + job.spec.timeout
        code = 0
        for _ in range(job.spec.attempts):
            code = self._attempt(job, command, deadline)
            if job.canceled.is_set():
                job.end("CANCELED")
            elif time.monotonic() > deadline:
                job.end("ERROR", "Job timeout")
            elif code == 0:
                job.end("COMPLETED")
            if job.stage in FINISHED:
                return
        job.end("ERROR", f"Job failed with exit code: {code}")

    def _attempt(self, job: Job, command: list[str], deadline: float) -> int:
        """Run the command once, and end all that it started; its exit status, negative for a signal."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, job.log.open("ab") as log:
            log.write(f"===== Job started at {time.strftime('%Y-%m-%d %H:%M:%S')} =====\n".encode())
            log.flush()
            own = {"HOME": folder, "HF_HOME": str(Path(folder) / "hf"), "JOB_ID": job.id}
            job.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**self.environment, **own, **job.spec.environment, **job.spec.secrets},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while not _has_ended(job.process.pid):
                    if job.canceled.wait(_POLL) or time.monotonic() > deadline:
                        os.killpg(job.process.pid, signal.SIGTERM)
                        _await_end(job.process.pid, _GRACE)
                        break
            finally:
                # Before the leader is waited for, so that the group's number cannot be another one's yet.
                with suppress(ProcessLookupError):
                    os.killpg(job.process.pid, signal.SIGKILL)
            return job.process.wait()


def _await_end(process: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not _has_ended(process) and time.monotonic() < end:
        time.sleep(_POLL)


def _has_ended(process: int) -> bool:
    """Whether a child has ended; it is not waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def command_here(command: tuple[str, ...]) -> list[str]:
    """What a job's command is on this machine: its own Python in place of an image, and no registry.

    ``uv run --with NAME==VERSION … WHAT`` runs WHAT, once each named package is seen to be installed here in
    that version. ``hubextrap`` and ``python`` are this Python's.

    Raises:
        ValueError: it asks for what is not here.
    """
    rest = list(command)
    if rest[:2] == ["uv", "run"]:
        del rest[:2]
        while rest[:1] in (["--with"], ["--python"]) and len(rest) > 1:
            if rest[0] == "--with":
                _check_installed(rest[1])
            elif not f"{sys.version_info[0]}.{sys.version_info[1]}.".startswith(f"{rest[1]}."):
                raise ValueError(f"Python {rest[1]} is not the one that is here")
            del rest[:2]
    if not rest:
        raise ValueError("there is no command")
    if rest[0] == "hubextrap":
        return [sys.executable, "-m", "hubextrap", *rest[1:]]
    if rest[0] in ("python", "python3"):
        return [sys.executable, *rest[1:]]
    return rest


def _check_installed(requirement: str) -> None:
    pinned = _PINNED.fullmatch(requirement)
    if pinned is None:
        raise ValueError(f"{requirement!r} is no NAME==VERSION, which is all that can be looked for here")
    try:
        found = version(pinned[1])
    except PackageNotFoundError:
        raise ValueError(f"{pinned[1]} is not installed here") from None
    if found != pinned[2]:
        raise ValueError(f"{pinned[1]} {found} is installed here, not {pinned[2]}")
