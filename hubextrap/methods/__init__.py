"""Merge methods: plain functions from training steps to coefficients that sum to 1."""

from __future__ import annotations

from hubextrap.methods.averages import average, ema
from hubextrap.methods.calibrating import beyond_the_past, calibrated, leave_one_out
from hubextrap.methods.checking import MAX_STEP, best_damping, coefficients, needs_gram_matrix
from hubextrap.methods.lines import GRID, least_squares, on_grid, persistence, sum_to_one, two_point
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
    ROUNDED,
    Rehearsals,
    longest_horizon,
    most_rehearsals,
    rehearse,
    rounding_share,
    signal,
    squared_distances,
    without_rounding,
)
from hubextrap.methods.rules import Rule, assign_rules
from hubextrap.methods.subspace import low_rank

__all__ = [
    "GRID",
    "MAX_STEP",
    "ROUNDED",
    "Method",
    "Parameter",
    "Rehearsals",
    "Rule",
    "assign_rules",
    "average",
    "best_damping",
    "beyond_the_past",
    "calibrated",
    "coefficients",
    "ema",
    "find_method",
    "least_squares",
    "leave_one_out",
    "longest_horizon",
    "low_rank",
    "method_names",
    "most_rehearsals",
    "nearest",
    "needs_gram_matrix",
    "on_grid",
    "parameter_problems",
    "persistence",
    "register_method",
    "rehearse",
    "rounding_share",
    "signal",
    "squared_distances",
    "sum_to_one",
    "two_point",
    "without_rounding",
]
