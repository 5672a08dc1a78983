"""Datasets: rows with a conversational prompt, the media it points to, and what a reward needs to judge an answer."""

from .synthetic import make_synthetic_dataset, reference_completion

__all__ = ["make_synthetic_dataset", "reference_completion"]
