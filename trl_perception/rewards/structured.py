"""Answers written as JSON or as a Python literal."""

import ast
import json
from typing import Any

_MAX_LENGTH = 10_000
_MAX_BRACKETS = 200  # low enough for any parser's recursion


def read_structure(text: str) -> Any:
    """Parse a text as a list or mapping, decimals of JSON kept as text; None for other, too long or nested text."""
    text = text.strip()
    if text[:1] not in ("[", "{") or len(text) > _MAX_LENGTH or text.count("[") + text.count("{") > _MAX_BRACKETS:
        return None
    if text[0] == "{" and text[-1] == "}" and "}," in text:
        return _parsed(text) or _parsed(f"[{text}]")  # objects separated by commas
    return _parsed(text)


def _as_written(number: str) -> str | float:
    return float(number) if "e" in number.lower() else number


def _parsed(text: str) -> Any:
    try:
        found = json.loads(text, parse_float=_as_written)
    except ValueError:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):  # not a literal
            return None
    return found if isinstance(found, list | dict) else None
