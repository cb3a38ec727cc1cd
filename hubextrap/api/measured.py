"""Figures that were measured before: kept by the sha256 of all that they depend on, not measured again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.api.fingerprint import check_unchanged, pin_of
from hubextrap.digests import sha256_of_json
from hubextrap.evaluation import Measurement
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
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


def measured_checkpoint(
    label: str, checkpoint: Checkpoint, harness: Harness, measured_with: str, kept: Kept
) -> Measurement:
    """The figures of a checkpoint, measured unless they were before.

    Raises:
        EvaluationError: the model does not load or run.
        SourceError: somebody wrote to the checkpoint meanwhile.
    """
    pin = pin_of(checkpoint)
    key = checkpoint_key(measured_with, pin)
    found = known_measurement(key, label, kept)
    if found is None:
        found = harness.measure(label, checkpoint)
        check_unchanged(checkpoint, pin)
        keep_measurement(key, found, kept)
    return found.of(label, checkpoint)
