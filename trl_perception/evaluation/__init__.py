"""Evaluation on held-out rows: completions, scores, figures with their intervals, and paired comparisons."""

from .compare import Comparison, compare
from .figures import figures, row_values
from .run import Evaluation, evaluate
from .settings import EvaluationSettings
from .statistics import Estimate, bootstrap_interval, estimate, pass_at_k

__all__ = [
    "Comparison",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "bootstrap_interval",
    "compare",
    "estimate",
    "evaluate",
    "figures",
    "pass_at_k",
    "row_values",
]
