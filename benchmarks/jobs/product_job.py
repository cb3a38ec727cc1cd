"""The arithmetic of products alone, by numpy's library: left·right of each shape in float64, on two threads.

Arguments: the inner dimension, then rows and columns of each product, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np

ROWS = 512
"""Rows of a product that are made at once, so that memory does not grow with its size."""


def main() -> None:
    inner, shapes = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    rows, columns = (max(extents) for extents in zip(*shapes, strict=True))
    left, right = np.random.default_rng(0).standard_normal((2, max(rows, columns), inner))
    right = np.ascontiguousarray(right.T)

    def multiply(block: tuple[int, int]) -> None:
        height, width = block
        np.dot(left[:height], right[:, :width], out=np.empty((height, width)))

    blocks = [
        (min(ROWS, rows - first), columns) for rows, columns in shapes for first in range(0, rows, ROWS)
    ]
    began, before = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(multiply, blocks))
    print(json.dumps({"own": time.perf_counter() - began, "processors": time.process_time() - before}))


main()
