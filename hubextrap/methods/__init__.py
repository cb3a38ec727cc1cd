"""Merge methods: plain functions from training steps to coefficients that sum to 1."""

from __future__ import annotations

from hubextrap.methods.checking import coefficients
from hubextrap.methods.lines import least_squares, persistence, sum_to_one, two_point
from hubextrap.methods.registry import (
    Method,
    Parameter,
    find_method,
    method_names,
    nearest,
    parameter_problems,
    register_method,
)
from hubextrap.methods.rules import Rule, assign_rules

__all__ = [
    "Method",
    "Parameter",
    "Rule",
    "assign_rules",
    "coefficients",
    "find_method",
    "least_squares",
    "method_names",
    "nearest",
    "parameter_problems",
    "persistence",
    "register_method",
    "sum_to_one",
    "two_point",
]
