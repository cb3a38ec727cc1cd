"""Merge methods: plain functions from training steps to coefficients that sum to 1."""

from __future__ import annotations

from hubextrap.methods.averages import average, ema
from hubextrap.methods.calibrating import calibrated
from hubextrap.methods.checking import MAX_STEP, coefficients
from hubextrap.methods.lines import late_lines, least_squares, on_grid, persistence, sum_to_one, two_point
from hubextrap.methods.registry import (
    Method,
    Parameter,
    find_method,
    method_names,
    nearest,
    parameter_problems,
    register_method,
)
from hubextrap.methods.rehearsal import (
    Rehearsals,
    denoised_gram,
    leading_subspace,
    longest_horizon,
    rehearse,
    rounding_share,
    squared_distances,
)
from hubextrap.methods.rules import Rule, assign_rules
from hubextrap.methods.subspace import low_rank

__all__ = [
    "MAX_STEP",
    "Method",
    "Parameter",
    "Rehearsals",
    "Rule",
    "assign_rules",
    "average",
    "calibrated",
    "coefficients",
    "denoised_gram",
    "ema",
    "find_method",
    "late_lines",
    "leading_subspace",
    "least_squares",
    "longest_horizon",
    "low_rank",
    "method_names",
    "nearest",
    "on_grid",
    "parameter_problems",
    "persistence",
    "register_method",
    "rehearse",
    "rounding_share",
    "squared_distances",
    "sum_to_one",
    "two_point",
]
