"""Strict access to a published record: a missing field or a wrong type is an error with its location."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("id", "problem_id", "sample_id", "question_id", "qid")


class RecordError(ValueError):
    """A record that does not follow its data set's published layout.

    str(error) = "<file>, record <number> (<id>): <reason>"
    """


@dataclass(frozen=True)
class Record:
    """A record of a file.

    Args: values: field -> value, as in the file; number: counts from 1; file: the source file.
    """

    values: Mapping[str, Any]
    number: int
    file: Path

    def wrong(self, reason: str) -> RecordError:
        """Return the error to raise for this record."""
        named = next((f" ({name} {self.values[name]})" for name in NAMES if self.values.get(name) is not None), "")
        return RecordError(f"{self.file}, record {self.number}{named}: {reason}")

    def field(self, *names: str) -> Any:
        """Return the value of the first of these fields that the record has. Errors: RecordError naming them."""
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        if null := next((name for name in names if name in self.values), None):
            raise self.wrong(f"field {null!r} is null.")
        raise self.wrong(
            f"field {' or '.join(map(repr, names))} is missing. Found fields: "
            f"{', '.join(map(str, self.values)) or 'none'}."
        )

    def text(self, *names: str) -> str:
        """Return a field that must hold non-empty text; numbers are converted to text."""
        value = self.field(*names)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong(f"field {names[0]!r} must be text, found {type(value).__name__} {_short(value)}.")
        if not str(value).strip():
            raise self.wrong(f"field {names[0]!r} is empty.")
        return str(value).strip()

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """Return a field that must hold one of the known values."""
        value = self.text(name)
        if value not in known:
            raise self.wrong(f"field {name!r} is {value!r}; one of {', '.join(map(repr, known))} is wanted.")
        return value

    def texts(self, name: str, *, optional: bool = False) -> list[str]:
        """Return a field that must hold a list of texts; a missing optional field gives an empty list."""
        if optional and self.values.get(name) is None:
            return []
        value = self.field(name)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str | int | float) for item in value):
            raise self.wrong(f"field {name!r} must be a list of texts, found {_short(value)}.")
        return [str(item).strip() for item in value]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
