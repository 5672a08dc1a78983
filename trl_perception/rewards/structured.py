"""Answers written as JSON or as a Python literal."""

import ast
import json
from typing import Any

_MAX_LENGTH = 10_000
_MAX_BRACKETS = 200  # few enough for any parser's recursion


def read_structure(text: str) -> Any:
    """The list or mapping that the text is, decimal numbers of JSON as their text; None for other text, or one too long or nested."""
    text = text.strip()
    if text[:1] not in ("[", "{") or len(text) > _MAX_LENGTH or text.count("[") + text.count("{") > _MAX_BRACKETS:
        return None
    if text[0] == "{" and text[-1] == "}" and "}," in text:
        return _parsed(text) or _parsed(f"[{text}]")  # objects side by side
    return _parsed(text)


def _as_written(number: str) -> str | float:
    return float(number) if "e" in number.lower() else number


def _parsed(text: str) -> Any:
    try:
        found = json.loads(text, parse_float=_as_written)
    except ValueError:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):  # no literal
            return None
    return found if isinstance(found, list | dict) else None
