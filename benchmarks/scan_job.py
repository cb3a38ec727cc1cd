"""One scan; its own seconds, without imports and compilation, are the last line: `scan_job FOLDER`."""

from __future__ import annotations

import sys
import time

import numpy as np

import hubextrap
import hubextrap.engine.scan  # numba is imported here, not while the clock runs
from hubextrap import api
from hubextrap.statistics.elements import BlockScanner
from hubextrap.statistics.linearity import BINS


def main() -> None:
    trajectory = hubextrap.find_trajectory(sys.argv[1])
    bits = np.zeros(1, np.uint16)
    BlockScanner(trajectory.steps).scan([bits] * len(trajectory.steps), np.zeros(BINS + 3, np.int64))
    started = time.perf_counter()
    api.scan(trajectory)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
