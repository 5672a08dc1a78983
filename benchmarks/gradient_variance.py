"""Compare the noise of the methods' gradients: `python -m benchmarks.gradient_variance [--model tiny] [--json FILE]`.

Each method takes the same rollouts of one frozen policy (learning rate 0), a batch of 16 groups a step. With g_i the
gradient of batch i, n batches, and <.,.> over all trained weights,

    signal   = mean over i != j of <g_i, g_j>      unbiased for |E g|^2
    variance = mean of |g_i|^2 - signal            of one batch
    noise    = variance / signal                   batches whose mean has as much noise as signal
    cosine   = mean over i != j of <g_i, h_j> / sqrt(signal_g signal_h), with h GRPO's gradient

The scale of a gradient does not change its noise. The interval of the ratio of a method's noise to GRPO's is 1.96 standard
errors of its logarithm, by the jackknife over batches.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.measure import machine
from trl_perception.study.credit import OracleTrainer
from trl_perception.train import build, parse

METHODS = dict.fromkeys(("grpo", "appo", "pgpo", "ktr", "papo", "vppo", "tw_grpo")) | {"oracle": OracleTrainer}
RECIPES = {"oracle": "pgpo/tiny"}
BASELINE = "grpo"
OPTIONS = {
    "learning_rate": 0.0,
    "max_grad_norm": 0.0,  # not clipped
    "synthetic": '{"size": 512, "seed": 2}',
    "disable_tqdm": "true",
    "use_cpu": "true",
    "log_level": "error",
    "logging_strategy": "no",
}


class Gradients(TrainerCallback):
    """The gradient (D,) of every step."""

    def __init__(self):
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).clone())


def gradients(method: str, model: str, steps: int) -> torch.Tensor:
    """The gradients (n,D) of n batches."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"config": RECIPES.get(method, f"{method}/tiny"), "model_name_or_path": model, "output_dir": folder}
        settings |= {"max_steps": steps, **OPTIONS}
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        trainer = build(*parse(flags), METHODS[method])
        found = Gradients()
        trainer.add_callback(found)
        trainer.train()
    return torch.stack(found.found)


def products(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Inner products (n,n) of gradients (n,D)."""
    return (ours.double() @ theirs.double().T).numpy()


def off_diagonal_mean(gram: np.ndarray) -> float:
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / (count * (count - 1)))


def noise(gram: np.ndarray) -> float:
    """Variance over signal of a batch, NaN where the signal is lost in it."""
    signal = off_diagonal_mean(gram)
    return float(np.trace(gram) / len(gram) - signal) / signal if signal > 0 else math.nan


def compare(own: np.ndarray, base: np.ndarray, crossed: np.ndarray) -> dict[str, float]:
    """A method's noise, its ratio to the baseline's with an interval, and the cosine of the mean gradients.

    Args: own, base, crossed: inner products (n,n) of its gradients, of the baseline's, and of its with the baseline's.
    """
    count = len(own)
    ratio = math.log(noise(own) / noise(base))
    left = [np.delete(np.arange(count), number) for number in range(count)]
    ratios = [math.log(noise(own[np.ix_(rest, rest)]) / noise(base[np.ix_(rest, rest)])) for rest in left]
    error = math.sqrt((count - 1) * np.var(ratios))
    signals = off_diagonal_mean(own) * off_diagonal_mean(base)
    return {
        "noise": noise(own),
        "over_baseline": math.exp(ratio),
        "low": math.exp(ratio - 1.96 * error),
        "high": math.exp(ratio + 1.96 * error),
        "cosine": off_diagonal_mean(crossed) / math.sqrt(signals),
    }


def as_markdown(result: dict) -> str:
    """A row a method."""
    lines = [f"{result['machine']}; {result['batches']} batches, model {result['model']}", ""]
    lines += [
        f"| method | noise | over {BASELINE}'s | 95 % interval | cosine with {BASELINE}'s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in result["methods"].items():
        interval = "" if name == BASELINE else f"{found['low']:.2f} to {found['high']:.2f}"
        lines.append(
            f"| {name} | {found['noise']:.1f} | {found['over_baseline']:.2f} | {interval} | {found['cosine']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    result = {"machine": machine("cpu"), "model": options.model, "batches": options.batches, "methods": {}}
    base = gradients(BASELINE, options.model, options.batches)
    for method in options.methods:
        own = base if method == BASELINE else gradients(method, options.model, options.batches)
        result["methods"][method] = compare(products(own, own), products(base, base), products(own, base))
        print(f"{method}: {result['methods'][method]['over_baseline']:.2f} of {BASELINE}'s noise", flush=True)
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
