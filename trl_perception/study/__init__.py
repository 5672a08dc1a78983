"""Studies: methods x seeds x models on the same data, with paired differences and their intervals."""

from .statistics import (
    Interval,
    MethodFigures,
    compare_methods,
    detectable_difference,
    hierarchical_bootstrap,
    interval,
)

__all__ = [
    "Interval",
    "MethodFigures",
    "compare_methods",
    "detectable_difference",
    "hierarchical_bootstrap",
    "interval",
]
