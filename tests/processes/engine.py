"""Runs with the engine in several processes; only where vLLM is installed."""

import os
from pathlib import Path

from tests.engine.rollouts import HYBRIDS, after_update, engine_trainer, largest_difference, rollout
from tests.families.training import mixed


def two_rollouts(folder: Path, job: dict, run: dict) -> list[float]:
    """The largest differences between log-probs of sampling and policy before and after an update, each process on rows of its own."""
    if run["family"] in HYBRIDS:
        from tests.engine.linear_attention import install

        install()
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = mixed(run["clips"], run["pictures"])[rank::processes][:2]
    trainer = engine_trainer(run["family"], Path(run["home"]), rows, **run["config"])
    return [largest_difference(trainer, step(trainer)) for step in (rollout, after_update)]
