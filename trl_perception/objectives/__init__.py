"""Formulas: tensors in, `TokenWeights` or `Penalty` out."""

from .results import Penalty, TokenWeights

__all__ = ["Penalty", "TokenWeights"]
