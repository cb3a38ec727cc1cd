"""The arithmetic alone: ns a weight in one thread, beside torch's passes and a memcpy of the inputs."""

from __future__ import annotations

from benchmarks.inputs import Bench
from benchmarks.measure import heading, job, row, spread


def kernels(bench: Bench) -> None:
    """bf16 to bf16, 262,144 weights at once; a line at K = 2, sums beyond."""
    found = job("kernels", bench.times(7)).said
    print("\nns a weight, medians (least–most); the loops and torch give the same bits\n")
    heading("K", "hubextrap", "torch", "memcpy", "torch/hubextrap")
    for count, times in found.items():
        pairs = zip(times["torch"], times["hubextrap"], strict=True)
        row(
            count,
            *(spread(values) for values in times.values()),
            spread([one / two for one, two in pairs], 1),
        )
