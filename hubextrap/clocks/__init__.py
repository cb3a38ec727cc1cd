"""Clocks: what time it is at a training step, by the steps or by the learning rate."""

from __future__ import annotations

from hubextrap.clocks.clock import STEPS, Clock, StepClock, Timeline, in_words, names_of

__all__ = ["STEPS", "Clock", "StepClock", "Timeline", "in_words", "names_of"]
