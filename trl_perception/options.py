"""Configuration fields: their help, and checks that say what was found and what is wanted."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

_ENTRY = re.compile(r"^        (\w[\w, ]*) \(.*\):\n((?: {12}.*\n)+)", re.MULTILINE)


def documented(config: type) -> type:
    """Class decorator of a dataclass: the entry of a field under "Parameters:" is its help on the command line as well."""
    entries = {name: text for names, text in _ENTRY.findall(config.__doc__) for name in names.split(", ")}
    for of_field in fields(config):
        if of_field.name in entries:
            of_field.metadata = {**of_field.metadata, "help": " ".join(entries[of_field.name].split())}
    return config


def require_positive(config: Any, name: str) -> None:
    """The field is above 0."""
    value = getattr(config, name)
    if value <= 0:
        raise ValueError(f"{name} is {value}; a number above 0 is wanted.")


def require_range(config: Any, name: str, low: float, high: float | None) -> None:
    """The field is within [low, high]; `high` None is no upper bound."""
    value = getattr(config, name)
    if value < low or (high is not None and value > high):
        wanted = f"a number in [{low:g}, {high:g}]" if high is not None else f"a number of at least {low:g}"
        raise ValueError(f"{name} is {value}; {wanted} is wanted.")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """The field is one of the choices."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; one of {', '.join(map(repr, choices))} is wanted.")


def take_preset(config: Any, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Fields that are None take the value that `config.preset` has for them: preset -> field -> value."""
    require_choice(config, "preset", tuple(presets))
    for name, value in presets[config.preset].items():
        if getattr(config, name) is None:
            setattr(config, name, value)
