"""One scan; its own seconds, without imports and compilation, are the last line: `scan_job FOLDER`."""

from __future__ import annotations

import sys
import time

import numpy as np

import hubextrap
import hubextrap.engine.scan  # numba is imported here, not while the clock runs
from hubextrap import api
from hubextrap.statistics.elements import AS_FLOAT32, BlockScanner
from hubextrap.statistics.linearity import BINS


def main() -> None:
    trajectory = hubextrap.find_trajectory(sys.argv[1])
    count = len(trajectory.steps)
    counts = np.zeros(BINS + 3, np.int64)
    raw, kinds = np.zeros(4 * count, np.uint8), np.full(count, AS_FLOAT32)
    converted = np.zeros((count, 0), np.float32)
    BlockScanner(trajectory.steps).scan(raw, converted, kinds, np.arange(count), 1, counts)
    started = time.perf_counter()
    api.scan(trajectory)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
