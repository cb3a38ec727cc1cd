"""Records of an evaluation, for tests that need one and not how it was made."""

from __future__ import annotations

from hubextrap.evaluation.table import MeasurementSettings

SETTINGS = MeasurementSettings(
    seed=0,
    batch_size=16,
    limit=None,
    num_fewshot=None,
    apply_chat_template=False,
    device="cpu",
    dtype="auto",
    versions={},
    tasks={},
)
