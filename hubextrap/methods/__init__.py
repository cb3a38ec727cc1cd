"""Merge methods: plain functions from training steps to coefficients that sum to 1."""

from __future__ import annotations

from hubextrap.methods.averages import average, ema
from hubextrap.methods.calibrating import calibrated
from hubextrap.methods.calls import call_fitted, call_leave_one_out, unless_it_cannot
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
    denoised_gram,
    leading_subspace,
    longest_horizon,
    most_rehearsals,
    rehearse,
    rounding_share,
    squared_distances,
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
    "calibrated",
    "call_fitted",
    "call_leave_one_out",
    "coefficients",
    "denoised_gram",
    "ema",
    "find_method",
    "leading_subspace",
    "least_squares",
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
    "squared_distances",
    "sum_to_one",
    "two_point",
    "unless_it_cannot",
]
