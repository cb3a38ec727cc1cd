"""Clocks: what time it is at a training step, by the steps or by the learning rate."""

from __future__ import annotations

from hubextrap.clocks.clock import (
    STEPS,
    Clock,
    ClockChoice,
    StepClock,
    Timeline,
    horizon_of,
    in_words,
    names_of,
    step_in_words,
)
from hubextrap.clocks.history import RateHistory, read_rate_file, read_trainer_state
from hubextrap.clocks.rates import RateClock
from hubextrap.clocks.recognising import Recognised, recognise
from hubextrap.clocks.schedules import SCHEDULES, Schedule, parse_schedule, schedule_problems

__all__ = [
    "SCHEDULES",
    "STEPS",
    "Clock",
    "ClockChoice",
    "RateClock",
    "RateHistory",
    "Recognised",
    "Schedule",
    "StepClock",
    "Timeline",
    "horizon_of",
    "in_words",
    "names_of",
    "parse_schedule",
    "read_rate_file",
    "read_trainer_state",
    "recognise",
    "schedule_problems",
    "step_in_words",
]
