"""Runs with the engine in several processes; only where vLLM is installed."""

import os
from pathlib import Path

from peft import LoraConfig

from tests.engine.rollouts import after_update, engine_trainer, install_plain, largest_difference, rollout
from tests.families.training import mixed
from tests.processes.runs import be_what_the_job_says, share_of_parameters
from trl_perception.trainers import GRPOVideoTrainer


def two_rollouts(folder: Path, job: dict, run: dict) -> list[float]:
    """The largest differences between log-probs of sampling and policy before and after an update, each process on rows of its own."""
    install_plain(run["family"])
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = mixed(run["clips"], run["pictures"])[rank::processes][:2]
    trainer = engine_trainer(run["family"], Path(run["home"]), rows, **run["config"])
    return [largest_difference(trainer, step(trainer)) for step in (rollout, after_update)]


def trained(folder: Path, job: dict, run: dict) -> dict:
    """How the parameters are held after two updates, and the largest difference of log-probs then."""
    install_plain(run["family"])

    class Trainer(GRPOVideoTrainer):
        def __init__(self, *args, **kwargs):
            be_what_the_job_says(job)
            super().__init__(*args, **kwargs)

    rows = mixed(run["clips"], [], {"video": "v"}, repeats=4)  # of one kind: each process runs the same forwards
    config = {"per_device_train_batch_size": 4, **run["config"]}
    extra = {"peft_config": LoraConfig(**run["lora"])} if run["lora"] else {}
    trainer = engine_trainer(run["family"], Path(run["home"]), rows, cls=Trainer, extra=extra, **config)
    trainer.train()
    return {
        "as": trainer.accelerator.distributed_type.value,
        "held": share_of_parameters(trainer.model),
        "difference": largest_difference(trainer, rollout(trainer)),
    }
