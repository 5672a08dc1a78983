"""The sample of each row of a rollout, for dumps and errors."""

from collections.abc import Sequence
from typing import Any

from ...batch import Rollout
from ...media import media_columns
from ...media.prompts import sample_name
from ...serialization import readable


def samples(rollout: Rollout, reward_names: Sequence[str]) -> list[dict[str, Any]]:
    """The sample of each row of a rollout as JSON: name, prompt, media and rewards."""
    rewards = rollout.rewards_per_func.tolist()
    known: dict[int, dict[str, Any]] = {}
    found = []
    for index, (row, prompt, scores) in enumerate(zip(rollout.rows, rollout.prompts, rewards, strict=True)):
        if id(prompt) not in known:
            media = [readable(medium) for of_kind in media_columns(row).values() for medium in of_kind]
            known[id(prompt)] = {
                "name": sample_name(row, index),
                "prompt": readable(row.get("prompt")),
                "media": media,
                "left_out": prompt.left_out,
            }
        found.append({**known[id(prompt)], "rewards": dict(zip(reward_names, scores, strict=True))})
    return found
