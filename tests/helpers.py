"""Small things that several tests need."""

import socket

import torch
from PIL import Image

from trl_perception.trainers import TRAINERS


def message(text, *kinds):
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]}]


def letter_variety(completions, **columns):
    """The number of different letters in each completion."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]


def every_method(**options):
    """Options of each trainer of the table by its name, none where none are given: a new method is in every test that asks."""
    return {name: options.get(name, {}) for name in TRAINERS}


def history(trainer, *keys):
    """The logged values of each key, a list a key."""
    return [[entry[key] for entry in trainer.state.log_history if key in entry] for key in keys]


def poster(path):
    """The picture at `path`."""
    return Image.open(path).convert("RGB")


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rows_of(batch, places):
    """A trainer's micro-batch with these of its rows alone; what is not a row's stays."""
    return {
        key: [value[i] for i in places]
        if isinstance(value, list)
        else value[places]
        if isinstance(value, torch.Tensor) and value.ndim
        else value
        for key, value in batch.items()
    }
