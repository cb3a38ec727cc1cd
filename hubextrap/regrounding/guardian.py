"""Between `hubextrap reground` and a trainer: ends the trainer when hubextrap dies, even by SIGKILL.

Run as ``python guardian.py PIPE COMMAND…`` in a session of its own, so that one process group holds the
trainer and all that it starts. PIPE ends when hubextrap does. A descriptor that it inherits holds the run's
lock, so nobody resumes the run while its trainer still writes. It is started without site-packages.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 40.0
"""Seconds that a trainer has between SIGTERM and SIGKILL; torchrun gives its own workers 30."""


def main() -> None:
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    # Handlers, and no SIG_IGN, which the trainer would inherit. They are the trainer's to react to.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    try:
        trainer = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    threading.Thread(target=_end_with, args=(pipe, trainer), daemon=True).start()
    code = trainer.wait()
    os._exit(128 - code if code < 0 else code)


def _end_with(pipe: int, trainer: subprocess.Popen[bytes]) -> None:
    while os.read(pipe, 1):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(0, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while trainer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
