"""The tables of docs/clocks.md: a run with a schedule, predicted along steps and along its rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from measured_run import CALIBRATED, METHODS, Array, MeasuredRun, Origin, figure, gain, markdown

from hubextrap.clocks import STEPS, Clock

FIRST_ORIGIN = 6  # checkpoints
REACHES = (1.25, 1.5, 2)
CONTINUED = 100  # full-rate steps


@dataclass(frozen=True)
class Prediction:
    """Of a step that was observed, by one method along one clock."""

    method: str
    clock: str
    target: int
    error: float
    """Of the weights; 1 is the last checkpoint's own."""
    expected: float | None
    """What the past let expect of `calibrated`."""
    off: float
    """How far its accuracy is from the real one."""


def predictions(run: MeasuredRun, clocks: tuple[Clock, ...]) -> Iterator[Prediction]:
    """All from the sixth checkpoint on whose target was observed, at its time as was known at the origin."""
    real: dict[int, float] = {}
    for count in range(FIRST_ORIGIN, len(run.steps)):
        for target in (run.steps[count - 1] * reach for reach in REACHES):
            if target not in run.steps:
                continue
            target = int(target)
            if target not in real:
                run.become_step(target)
                real[target] = float(run.accuracies().mean())
            for clock in clocks:
                origin = Origin(run, count, clock)
                time = origin.clock.time_of(target)
                for method in METHODS:
                    mixture = origin.mixture(time, method)
                    run.become(mixture)
                    off = abs(float(run.accuracies().mean()) - real[target])
                    expected = origin.expected(time) if method == CALIBRATED else None
                    yield Prediction(
                        method, clock.name, target, error(origin, mixture, target), expected, off
                    )


def error(origin: Origin, mixture: Array, target: int) -> float:
    """‖predicted − real‖ / ‖last − real‖, over all tensors."""
    gram, count = origin.run.table.gram, origin.count
    real = np.eye(len(gram[0]))[origin.run.steps.index(target)]
    last = np.eye(len(gram[0]))[count - 1]
    away = np.pad(mixture, ((0, 0), (0, len(real) - count))) - real
    squares = (
        np.einsum("ni,nij,nj->", away, gram, away),
        np.einsum("i,nij,j->", last - real, gram, last - real),
    )
    return float(np.sqrt(squares[0] / squares[1]))


def clock_table(found: list[Prediction]) -> str:
    """Methods, their weight errors along either clock, and how far their accuracy is from the real one."""
    head = ["method", "e along steps (worst)", "e along the learning rate (worst)", "better in"]
    head += ["accuracy off by, steps → learning rate"]
    rows = []
    for method in METHODS:
        steps, rates = (
            [one for one in found if one.method == method and one.clock == clock]
            for clock in ("steps", "learning_rate")
        )
        errors = [np.array([one.error for one in some]) for some in (steps, rates)]
        offs = [figure(float(np.mean([one.off for one in some])), 4) for some in (steps, rates)]
        means = [f"{figure(float(some.mean()))} ({figure(float(some.max()), 2)})" for some in errors]
        better = f"{int((errors[1] < errors[0]).sum())} of {len(steps)}"
        rows.append([f"`{method}`", *means, better, " → ".join(offs)])
    return markdown(head, rows)


def expectation_table(found: list[Prediction]) -> str:
    """What `calibrated` expects beforehand, and what was found."""
    rows = []
    for clock, words in (("steps", "steps"), ("learning_rate", "learning rate")):
        some = [one for one in found if one.clock == clock and one.expected is not None]
        expected, errors = ([getattr(one, name) for one in some] for name in ("expected", "error"))
        means = float(np.mean(expected)), float(np.mean(errors))
        rows.append([words, *map(figure, means), gain(means[0] - means[1])])
    return markdown(["clock", "expected by `calibrated`", "found", "difference"], rows)


def continuation_table(run: MeasuredRun) -> str:
    """A finished run, continued as if its rate had stayed at its peak."""
    run.become_step(run.steps[-1])
    last = float(run.accuracies().mean())
    origin = Origin(run, len(run.steps))
    rows = [["the last checkpoint", figure(last), ""]]
    for method in METHODS:
        run.become(origin.mixture(origin.times[-1] + CONTINUED, method))
        found = float(run.accuracies().mean())
        rows.append([f"`{method}`", figure(found), gain(found - last)])
    return markdown(["from the last step by 100 full-rate steps", "accuracy", "gained"], rows)


def tables(run: MeasuredRun) -> str:
    found = list(predictions(run, (STEPS, run.table.clock)))
    return "\n\n".join([clock_table(found), expectation_table(found), continuation_table(run)])
