"""Contexts in which other packages behave otherwise."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from transformers.integrations import deepspeed


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Context manager in which a name of a module has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def unsharded() -> AbstractContextManager[None]:
    """Context manager in which transformers builds models without ZeRO-3, which would shard parts of the engine."""
    return replaced(deepspeed, "_hf_deepspeed_config_weak_ref", None)
