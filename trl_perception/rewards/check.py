"""Checks before a run that the reward functions can score each row."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from trl_perception.rewards.registry import REWARDS
from trl_perception.rewards.rules import check_solution

PARSED = 1000  # mathematical expressions to parse; one takes milliseconds
# reward function -> the problem types that it scores, None for all
READS = {
    REWARDS["accuracy"]: None,
    REWARDS["boxed_accuracy"]: None,
    REWARDS["temporal_iou"]: ("temporal grounding",),
    REWARDS["box_iou"]: ("box grounding", "spatial grounding"),
}


def solution_check(reward_funcs: Sequence[Any]) -> Callable[[Mapping[str, Any]], None] | None:
    """Return a check of a row's `problem_type`, `solution` and `options`: ValueError if a reward could not score it.

    Returns None if no reward reads a solution by its problem type. Only the first 1,000 distinct mathematical
    expressions are parsed.
    """
    functions = [reward.func if isinstance(reward, partial) else reward for reward in reward_funcs]
    reads = [READS[function] for function in functions if callable(function) and function in READS]
    if not reads:
        return None
    types = None if None in reads else {kind for of_reward in reads for kind in of_reward}
    parsed: set[str] = set()

    def check(row: Mapping[str, Any]) -> None:
        kind, solution = row.get("problem_type"), row.get("solution")
        if types is not None and kind not in types:
            return
        if kind == "mathematics" and isinstance(solution, str) and solution.strip():
            if solution in parsed or len(parsed) >= PARSED:
                return
            parsed.add(solution)
        check_solution(kind, solution, row.get("options") or None)

    return check
