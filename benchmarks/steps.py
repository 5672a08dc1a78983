"""Whole optimisation steps: each method against GRPO, the fast paths against the plain ones, and TRL's trainer against ours."""

import gc
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.measure import now, peak_memory
from benchmarks.models import random_model
from trl_perception.data import make_synthetic_dataset
from trl_perception.train import build, parse
from trl_perception.trainers import TRAINERS

PLAIN = {"group_forward": "off", "shared_prefill": False, "reuse_vision_features": False}
METHODS = {
    "appo": {"tokens_per_frame": 16, "accuracy_reward": "variety"},
    "pgpo": {},
    "ktr": {},
    "papo": {},
    "vppo": {},
    "t_grpo": {"accuracy_reward": "variety"},
    "tw_grpo": {},
}


class StepTimes(TrainerCallback):
    """Seconds of each optimisation step, its rollout included, and of the hooks in it (their forwards, no backward)."""

    HOOKS = (
        "token_weights",
        "gather_statistics",
        "sequence_weights",
        "rollout_signals",
        "penalty",
        "sample_counterfactuals",
        "shape_rewards",
    )

    def __init__(self, device: str):
        self.device, self.times, self.of_hooks, self.begun = device, [], [], 0.0

    def watch(self, trainer) -> None:
        trainer.add_callback(self)
        for name in self.HOOKS:
            setattr(trainer, name, self._timed(getattr(trainer, name)))

    def _timed(self, hook):
        def timed(*args):
            begun = now(self.device)
            result = hook(*args)
            self.of_hooks[-1] += now(self.device) - begun
            return result

        return timed

    def on_step_begin(self, args, state, control, **kwargs):
        self.of_hooks.append(0.0)
        self.begun = now(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(now(self.device) - self.begun)

    @property
    def typical(self) -> float:
        """Median without the first step."""
        return statistics.median(self.times[1:])

    @property
    def in_hooks(self) -> float:
        """Share of the time spent in the hooks, without the first step."""
        return sum(self.of_hooks[1:]) / sum(self.times[1:])


def variety(completions, **columns):
    return [float(len(set(completion[0]["content"])) % 2) for completion in completions]


def settings(plan: dict, folder: str) -> dict:
    """Settings of every run, TRL's own included."""
    count = plan["generations"]
    return {
        "output_dir": folder,
        "per_device_train_batch_size": count,
        "num_generations": count,
        "max_completion_length": plan["length"],
        "generation_kwargs": {"min_new_tokens": plan["length"]},
        "max_steps": 1,
        "gradient_checkpointing": plan["device"] != "cpu",
        "bf16": plan["dtype"] == torch.bfloat16,
        "use_cpu": plan["device"] == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def timed_rollout(trainer: GRPOTrainer, plan: dict) -> dict[str, float]:
    """Train; return seconds of the rollout with its updates, tokens a second and peak MiB."""
    device = plan["device"]
    trainer.remove_callback(PrinterCallback)
    times = StepTimes(device)
    trainer.add_callback(times)
    memory = peak_memory(trainer.train, device)
    seconds = sum(times.times)
    return {"seconds": seconds, "tokens_s": trainer.state.num_input_tokens_seen / seconds, "peak_mib": memory}


def peer(plan: dict) -> list[dict]:
    """A step of GRPO on an image of random pixels by TRL's trainer and by this package's, each after one that does not count.

    Args: plan: `model`, a size of `random_model`; `device`, `dtype`, `generations` G and `length` R; the image has sides of
        four times `resolution`, pixels.
    """
    side, device = plan["resolution"] * 4, plan["device"]
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    row = {"prompt": [{"role": "user", "content": "What is shown?"}], "image": Image.fromarray(noise)}
    rows = []
    trainers = {"TRL": (GRPOTrainer, GRPOConfig), "trl_perception": (TRAINERS["grpo"], TRAINERS["grpo"].config_class)}
    for name in (name for name in trainers for _ in range(2)):
        trainer_class, config_class = trainers[name]
        model, processor = random_model(plan["model"], device=device, dtype=plan["dtype"])
        processor.image_processor.size = {"shortest_edge": side**2, "longest_edge": side**2}
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_class(
                model=model,
                processing_class=processor,
                reward_funcs=variety,
                args=config_class(**settings(plan, folder)),
                train_dataset=Dataset.from_list([row, row]),
            )
            rows.append({"trainer": name, **timed_rollout(trainer, plan)})
        del trainer, model
        gc.collect()
    plain, ours = rows[1::2]
    ours["speedup"] = plain["seconds"] / ours["seconds"]
    return [plain, ours]


def methods(
    size: str, device: str, dtype: torch.dtype, steps: int, length: int, rounds: int, names: list[str]
) -> dict[str, dict[str, float]]:
    """Whole steps: G 8, one video prompt of about 1040 tokens, frozen tower as in the papers' recipes."""

    def step_time(name, folder, **options):
        model, processor = random_model(size, device=device, dtype=dtype)
        config = TRAINERS[name].config_class(
            output_dir=folder,
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            max_steps=1 + steps * options.get("num_iterations", 1),  # the first does not count
            freeze_vision_tower=True,
            video_fps=4.0,
            video_max_frames=32,
            gradient_checkpointing=device != "cpu",
            bf16=dtype == torch.bfloat16,
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        )
        clip = {"size": 4, "seed": 0, "families": ["static"], "resolution": 224, "seconds": 8.0}
        rows = make_synthetic_dataset(Path(folder) / "clips", **clip)
        trainer = TRAINERS[name](
            model=model, processing_class=processor, reward_funcs=variety, args=config, train_dataset=rows
        )
        times = StepTimes(device)
        times.watch(trainer)
        trainer.train()
        return times.typical, times.in_hooks

    # Each method alternates with its baseline, so that a slowdown of the machine affects both.
    plans = {"grpo": ("grpo", {}), **{name: (name, options) for name, options in METHODS.items()}}
    twice = {"num_iterations": 2}
    plans |= {"grpo, two iterations": ("grpo", twice), "ral": ("ral", twice)}
    baseline = {"ral": "grpo, two iterations"}
    wanted = {name: plans[name] for name in [*dict.fromkeys(baseline.get(name, "grpo") for name in names), *names]}
    times: dict[str, list[float]] = {name: [] for name in wanted}
    shares: dict[str, list[float]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, (trainer, options) in wanted.items():
                seconds, share = step_time(trainer, folder, **options)
                times[name].append(seconds)
                shares[name].append(share)
        everything = {*names} == {*METHODS, "ral"}
        plain = step_time("grpo", folder, **PLAIN)[0] if everything else None  # the slowest of all
    result = {}
    for name in names:
        base = times[baseline.get(name, "grpo")]
        over = [ours / theirs - 1 for ours, theirs in zip(times[name], base, strict=True)]
        result[name] = {
            "seconds": statistics.median(times[name]),
            "over_grpo": statistics.median(over),
            "each": over,
            "in_hooks": statistics.median(shares[name]),
        }
    if plain:
        base = statistics.median(times["grpo"])
        result["grpo"] = {"seconds": base, "plain_seconds": plain, "speedup": plain / base}
    return result


def short_prompts(steps: int) -> dict[str, float]:
    """A whole step of `recipes/grpo/tiny.yaml`: about 55 prompt tokens, at most 48 of a completion."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in {"plain": PLAIN, "auto": {}}.items():
            flags = [text for key, value in paths.items() for text in (f"--{key}", str(value))]
            trainer = build(
                *parse(["--config", "grpo/tiny", "--max_steps", str(steps + 1), "--output_dir", folder, *flags])
            )
            watch = StepTimes("cpu")
            watch.watch(trainer)
            trainer.train()
            times[name] = watch.typical
    return {"speedup": times["plain"] / times["auto"], "slow_s": times["plain"], "fast_s": times["auto"]}
