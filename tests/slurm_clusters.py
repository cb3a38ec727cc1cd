"""Clusters for tests of Slurm: one of a small program, and Slurm itself, if its daemons are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "executors" / "fake_slurm.py"
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
DAEMONS = ("munged", "slurmctld", "slurmd")


class FakeSlurm:
    """A cluster of two CPUs; see fake_slurm.py."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = folder / "state"
        (self.state / "tasks").mkdir(parents=True)
        programs = folder / "bin"
        programs.mkdir()
        for program in PROGRAMS:
            wrapper = programs / program
            wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -ISs {FAKE} {program} "$@"\n')
            wrapper.chmod(0o755)
        monkeypatch.setenv("FAKE_SLURM", str(self.state))
        monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def processes(self) -> dict[int, str]:
        """The job of each process of hubextrap's that runs in one."""
        return _processes(f"FAKE_SLURM={self.state}")

    def queue(self) -> list[str]:
        """The jobs in the queue."""
        return sorted(task.name for task in (self.state / "tasks").iterdir())

    def script(self, job: str) -> str:
        return (self.state / f"{job}.sh").read_text()

    def calls(self, program: str) -> list[str]:
        """How a program was called, each time."""
        calls = (self.state / "calls").read_text().splitlines() if (self.state / "calls").exists() else []
        return [call for call in calls if call.split(" ")[0] == program]

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until the queue is empty."""
        deadline = time.monotonic() + seconds
        while queue := self.queue():
            assert time.monotonic() < deadline, f"still in the queue: {queue}\n{self._said()}"
            time.sleep(0.02)

    def _said(self) -> str:
        """What there is to say of a queue that does not empty."""
        files = [*(self.state / "tasks").iterdir(), *(self.state / name for name in ("ended", "control.log"))]
        return "\n".join(f"{one.name}: {one.read_text()[-3000:]}" for one in files if one.exists())

    def close(self) -> None:
        """End whatever it has started and is still there."""
        pids = (self.state / "pids").read_text().split() if (self.state / "pids").exists() else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)


class RealSlurm:
    """Slurm's own daemons on this machine, with a configuration and a state of their own; two CPUs.

    Args:
        folder: a short path, for a socket lies in it.
    """

    def __init__(self, folder: Path) -> None:
        if lacking := [name for name in (*DAEMONS, *PROGRAMS) if _program(name) is None]:
            pytest.skip(f"Slurm is not installed here: no {', '.join(lacking)}")
        self.folder = folder
        self.config = folder / "slurm.conf"
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        said = [f"--{name}-file={self.folder / name}" for name in ("pid", "log", "seed")]
        said += [f"--key-file={key}", f"--socket={self.folder / 'munge.sock'}", "--num-threads=2", "--force"]
        self._daemon("munged", "--foreground", *said)
        host, ports = socket.gethostname().partition(".")[0], _free_ports(2)
        self.config.write_text(_CONFIG.format(folder=self.folder, host=host, ports=ports, user=_user()))
        # while munged makes its socket
        self._until(lambda: (self.folder / "munge.sock").exists(), "munged")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", host)
        self._until(lambda: "idle" in self._asked("sinfo", "-h", "-o", "%t"), "slurmd")

    def _daemon(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None
        with (self.folder / f"{name}.out").open("wb") as printed:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=os.environ | {"SLURM_CONF": str(self.config)},
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _until(self, is_so: object, what: str, seconds: float = 30.0) -> None:
        assert callable(is_so)
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline or any(one.poll() is not None for one in self._daemons):
                said = [path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.out")]
                pytest.fail(f"{what} does not start here:\n" + "\n".join(said))
            time.sleep(0.05)

    def _asked(self, *command: str) -> str:
        environment = os.environ | {"SLURM_CONF": str(self.config)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
        return ran.stdout

    def queue(self) -> list[str]:
        """The jobs in the queue."""
        return self._asked("squeue", "-h", "-r", "-o", "%i").split()

    def processes(self) -> dict[int, str]:
        """The job of each process of hubextrap's that runs in one."""
        return _processes(f"SLURM_CONF={self.config}")

    def wait(self, seconds: float = 120.0) -> None:
        """Wait until the queue is empty."""
        deadline = time.monotonic() + seconds
        while queue := self.queue():
            assert time.monotonic() < deadline, f"still in the queue: {queue}"
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """Empty the queue."""
        if queue := self.queue():
            self._asked("scancel", *queue)
        self.wait()

    def close(self) -> None:
        """End the daemons, and with them what they started."""
        if len(self._daemons) == len(DAEMONS):
            with contextlib.suppress(Exception):
                self.cancel_all()
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(timeout=10)


def _processes(mark: str) -> dict[int, str]:
    """The job of each process that has a variable of that value, and ``-m hubextrap`` in its command."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or b"-m\0hubextrap\0" not in (entry / "cmdline").read_bytes():
                continue
            said = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            variables = dict(one.partition("=")[::2] for one in said)
            if mark in said and (job := variables.get("SLURM_JOB_ID")):
                task = variables.get("SLURM_ARRAY_TASK_ID")
                found[int(entry.name)] = (
                    job if task is None else f"{variables.get('SLURM_ARRAY_JOB_ID')}_{task}"
                )
    return found


def _program(name: str) -> str | None:
    """Where a program is; daemons lie beside those of root's."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


_CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
ReturnToService=2
MailProg=/bin/true
MinJobAge=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
