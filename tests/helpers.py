"""Helpers shared by several tests."""

import socket

import pytest
import torch
from PIL import Image

from trl_perception.trainers import TRAINERS


def message(text, *kinds):
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]}]


def letter_variety(completions, **columns):
    """The number of different letters in each completion."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]


COMPARED = ("papo", "t_grpo", "tw_grpo", "vppo")
"""Methods that are there to compare with: where a table of tests runs every method, theirs are slow."""


def methods(fast=()):
    """The name of every method for `parametrize`; those of `COMPARED` are slow, but for the ones in `fast`."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=slow) if name in COMPARED and name not in fast else name for name in TRAINERS]


def every_method(**options):
    """Options of each trainer in the table by name, empty by default, so that a new method is in every test that uses this."""
    return {name: options.get(name, {}) for name in TRAINERS}


def history(trainer, *keys):
    """The logged values of each key, a list a key."""
    return [[entry[key] for entry in trainer.state.log_history if key in entry] for key in keys]


def poster(path):
    """The picture at `path`."""
    return Image.open(path).convert("RGB")


def free_port():
    """A free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rows_of(batch, places):
    """A trainer's micro-batch with only these rows; entries that do not belong to rows stay."""
    return {
        key: [value[i] for i in places]
        if isinstance(value, list)
        else value[places]
        if isinstance(value, torch.Tensor) and value.ndim
        else value
        for key, value in batch.items()
    }
