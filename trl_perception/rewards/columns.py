"""Dataset columns, as TRL passes them to a reward function."""

from collections.abc import Sequence
from typing import Any


def require_column(name: str, column: Sequence[Any] | None, completions: Sequence[Any], reward: str) -> Sequence[Any]:
    """Return the column after checking that it holds one value per completion.

    Raises: ValueError naming the column and the reward if the column is missing or has another length.
    """
    if column is None:
        raise ValueError(
            f"{reward} needs the dataset column {name!r} and did not get it. "
            "Add the column to every row, or take the reward out of reward_funcs."
        )
    if len(column) != len(completions):
        raise ValueError(
            f"{reward}: column {name!r} has {len(column)} values for {len(completions)} completions; "
            "TRL repeats a row's value once per completion, so both counts must agree."
        )
    return column
