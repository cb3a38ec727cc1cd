"""Runs `hubextrap` commands in forks of a process that has everything imported: a kill costs no start-up.

Reads a JSON object a line: {"arguments": […], "output": FILE, "environment": {…}}. Answers with the pid at
once, and with the exit code (minus the signal, if that ended it) when the command has ended. A checkpoint
named on the command line is scanned first, which compiles the loops.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

import huggingface_hub.hf_api
import huggingface_hub.lfs  # noqa: F401

import hubextrap.cli.summaries
import hubextrap.engine.run
import hubextrap.engine.scan  # noqa: F401
from hubextrap import api
from hubextrap.api.extrapolating import scan_folders
from hubextrap.cli.main import main
from hubextrap.progress import SilentProgress
from hubextrap.trajectory import Checkpoint

with suppress(ImportError):  # an installation without it
    import torch  # noqa: F401

for name in api.__all__:  # imported when they are first used
    getattr(api, name)


def run(arguments: list[str], output: str) -> NoReturn:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    sys.argv = ["hubextrap", *arguments]
    code = 70
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if len(sys.argv) > 1:
    checkpoints = [Checkpoint(step, None, "", None, sys.argv[1]) for step in (0, 1)]
    scan_folders(checkpoints, api.ReadingOptions(), SilentProgress())
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ |= asked["environment"]
        run(asked["arguments"], asked["output"])
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
