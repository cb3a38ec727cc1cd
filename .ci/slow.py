"""Run the slow tests in two processes side by side, which halves the time on two cores: python .ci/slow.py"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FIRST = {"chain", "docs", "evaluate", "executors", "mergekit_plugin", "methods", "predict", "recipe"}
FIRST |= {"reground", "report", "resume", "statistics", "trajectory", "work"}
"""Folders that take about half of the time."""


def main() -> int:
    tests = [path for path in sorted(Path("tests").iterdir()) if path.is_dir() or path.match("test_*.py")]
    tests = [path for path in tests if not path.name.startswith("_")]
    line = [sys.executable, "-m", "pytest", "-q", "-m", "slow"]
    with Path(".second-half.log").open("w+") as log:
        rest = [path for path in tests if path.name not in FIRST]
        second = subprocess.Popen([*line, *rest], stdout=log, stderr=subprocess.STDOUT)
        first = subprocess.run([*line, *(path for path in tests if path.name in FIRST)], check=False)
        second.wait()
        log.seek(0)
        print(log.read(), flush=True)
    return first.returncode or second.returncode


if __name__ == "__main__":
    sys.exit(main())
