"""Packages that only some problem types need."""

from importlib import import_module
from types import ModuleType


def needed(module: str, package: str, problem_type: str) -> ModuleType:
    """Import and return a module. Raises: ImportError with the command that installs its package."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"problem_type {problem_type!r} is scored with {package}, which does not import ({error}). "
            f"Install it: pip install {package}"
        ) from error
