"""Runs `hubextrap` commands in forks of a process that has everything imported: a kill costs no start-up.

Reads a JSON object a line: {"arguments": […], "output": FILE, "token": …}. Answers with the pid at once, and
with the exit code (minus the signal, if that ended it) when the command has ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import NoReturn

import huggingface_hub.hf_api
import huggingface_hub.lfs  # noqa: F401
import torch  # noqa: F401

import hubextrap.api.merging
import hubextrap.cli.summaries  # noqa: F401
from hubextrap.cli.main import main


def run(arguments: list[str], output: str) -> NoReturn:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
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


print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ["HF_TOKEN"] = asked["token"]
        run(asked["arguments"], asked["output"])
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
