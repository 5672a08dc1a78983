"""Runs with the engine in several processes; only where vLLM is installed."""

from pathlib import Path

from tests.engine.rollouts import engine_trainer
from tests.families.training import mixed
from tests.helpers import history
from trl_perception.engine import generation


def two_steps(folder: Path, job: dict, run: dict) -> dict:
    """Two steps with the engine; the largest difference between log-probs of sampling and policy in each."""
    generation.PLACEHOLDER_BIAS = 0.0
    rows = mixed(run["clips"], run["pictures"], repeats=2)
    options = {"per_device_train_batch_size": 4, "vllm_tensor_parallel_size": run["tensor_parallel"], "max_steps": 2}
    trainer = engine_trainer("qwen2_5_vl", Path(run["home"]), rows, **options, **run["config"])
    trainer.train()
    (found,) = history(trainer, "sampling/sampling_logp_difference/max")
    return {"differences": found}
