"""Figures that were measured before: kept by the sha256 of all that they depend on, not measured again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.api.fingerprint import check_unchanged, pin_of
from hubextrap.digests import sha256_of_json
from hubextrap.evaluation import Measurement
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.api.grid import Kept
    from hubextrap.evaluation import Harness
    from hubextrap.trajectory import Checkpoint


def known_measurement(key: str, label: str, kept: Kept) -> Measurement | None:
    """The measurement under ``key``, with the label that it has now."""
    try:
        return Measurement.model_validate(kept.get(key)).labelled(label)
    except ValueError:
        return None  # not there, or another version's: it is measured again


def keep_measurement(key: str, measurement: Measurement, kept: Kept) -> None:
    """Keep it for whoever asks under ``key``."""
    row = measurement.row.model_copy(update={"reference": ""})  # where it lay is no part of what it is
    content = measurement.model_copy(update={"row": row}).model_dump_json()
    kept.put(key, parse_json(content, key))


def checkpoint_key(measured_with: str, pin: str) -> str:
    """Under which the figures of a checkpoint are kept.

    Args:
        measured_with: what stands for all that they depend on beside the weights.
        pin: what stands for the checkpoint.
    """
    return sha256_of_json([measured_with, pin])


def measured_checkpoints(
    rows: Sequence[tuple[str, Checkpoint]], harness: Harness, measured_with: str, kept: Kept
) -> list[Measurement]:
    """The figures of checkpoints, each measured unless it was before.

    Raises:
        EvaluationError: a model does not load or run.
        SourceError: somebody wrote to a checkpoint meanwhile.
    """
    pins = [pin_of(checkpoint) for _, checkpoint in rows]
    keys = [checkpoint_key(measured_with, pin) for pin in pins]
    found = {key: known_measurement(key, "", kept) for key in keys}
    todo = [keys.index(key) for key, known in found.items() if known is None]
    for number, measured in harness.measure_each([rows[at] for at in todo]):
        at = todo[number]
        check_unchanged(rows[at][1], pins[at])
        keep_measurement(keys[at], measured, kept)
        found[keys[at]] = measured
    return [known.of(*row) for row, key in zip(rows, keys, strict=True) if (known := found[key]) is not None]
