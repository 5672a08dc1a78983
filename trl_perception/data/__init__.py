"""Datasets: rows with a conversational prompt, its media, and the columns that rewards read."""

from importlib import import_module

__all__ = ["make_synthetic_dataset", "reference_completion"]


def __getattr__(name: str):
    """Import names lazily: paths and templates of a command line are checked without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".synthetic", __name__), name)
