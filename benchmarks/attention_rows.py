"""What it costs to keep RAL's rows in fewer bytes: `python -m benchmarks.attention_rows [--json FILE]`.

The rows p_old of a rollout are kept until its second update. Here RAL's recipe for the embedded model takes that update with
each form of them, at several learning rates, so that the policy has moved more or less. The error of a form is
|g - g_exact| / |g_exact|, g the gradient of RAL's term with respect to all trained weights.

Forms: float32 (exact), float16, bfloat16, and the k largest entries of a row in float32 with their places (8 bytes an entry):
what is left of the row's mass is spread over the other keys in proportion to the present policy, so that these count as one.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.measure import machine
from benchmarks.performance_table import with_table
from trl_perception import RALTrainer
from trl_perception.modeling.attention_policy import padded, policy_of, visual_keys
from trl_perception.objectives import Penalty, ral_penalty
from trl_perception.train import build, parse

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
RATES = (5e-4, 5e-5, 5e-6)


def cast(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda old, now: old.to(dtype).to(old.dtype)


def largest(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The `count` largest entries of each row of `old`, and the rest of its mass as `now` (both (B,T,S)) spreads it."""

    def form(old: Tensor, now: Tensor) -> Tensor:
        values, places = old.topk(count, dim=-1)
        known = torch.zeros_like(old).scatter(-1, places, values)
        others = now.detach().scatter(-1, places, 0.0)
        mass = (old.sum(-1, keepdim=True) - values.sum(-1, keepdim=True)).clamp(min=0)
        return known + others * mass / others.sum(-1, keepdim=True).clamp(min=torch.finfo(old.dtype).tiny)

    return form


FORMS = {
    "float32": (cast(torch.float32), "4 a key"),
    "float16": (cast(torch.float16), "2 a key"),
    "bfloat16": (cast(torch.bfloat16), "2 a key"),
    "16 largest": (largest(16), "128"),
    "4 largest": (largest(4), "32"),
}


class RowsInForms(RALTrainer):
    """RAL that measures the gradient of its term with the rows in every form, and trains with the exact ones."""

    def setup_method(self) -> None:
        super().setup_method()
        self.errors: dict[str, list[float]] = {name: [] for name in FORMS}
        self.divergences: list[float] = []

    def penalty(self, inputs) -> Penalty | None:
        if self.model.training and not self.policy_is_the_one_that_sampled():
            self.compare(inputs, *self.taps[0].results[-1])
        return super().penalty(inputs)

    def compare(self, inputs, layers, mask) -> None:
        width, options = inputs["completion_ids"].size(1), self.args
        policy = policy_of(layers, mask, width, visual_keys(inputs), query=options.attn_query, keys=options.attn_keys)
        exact = padded(inputs.signal("reference_policy"), policy)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        of_forms = {}
        for name, (form, _) in FORMS.items():
            term = ral_penalty(policy, form(exact, policy), inputs["advantages"], inputs.loss_mask)
            grads = torch.autograd.grad(term.loss, weights, retain_graph=True, allow_unused=True)
            of_forms[name] = torch.cat([grad.flatten() for grad in grads if grad is not None])
            if name == "float32":
                self.divergences.append(term.metrics["ral/jsd"].item())
        for name, grad in of_forms.items():
            self.errors[name].append((torch.dist(grad, of_forms["float32"]) / of_forms["float32"].norm()).item())


def measure(model: str, learning_rate: float, steps: int) -> dict:
    """The mean divergence and each form's mean error over the second updates of `steps` updates."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"config": "ral/tiny", "model_name_or_path": model, "output_dir": folder, "max_steps": steps}
        settings |= {"learning_rate": learning_rate, "warmup_steps": 0, "per_device_train_batch_size": 64}
        settings |= {"disable_tqdm": "true", "use_cpu": "true", "log_level": "error", "logging_strategy": "no"}
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        trainer = build(*parse(flags), RowsInForms)
        trainer.train()
    errors = {name: mean(values) for name, values in trainer.errors.items()}
    return {"learning_rate": learning_rate, "divergence": mean(trainer.divergences), "errors": errors}


def as_markdown(result: dict) -> str:
    """A row a form."""
    cases = result["cases"]
    lines = [f"{result['machine']}; {result['steps']} updates, model {result['model']}", ""]
    shifts = " | ".join(f"{case['learning_rate']:.0e}, JSD {case['divergence']:.1e}" for case in cases)
    lines += [f"| rows | bytes a row | {shifts} |", "|---|---:|" + "---:|" * len(cases)]
    for name, (_, size) in FORMS.items():
        lines.append(
            f"| {name} | {size} | " + " | ".join(f"{100 * case['errors'][name]:.2g} %" for case in cases) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=20, help="updates, two a rollout")
    parser.add_argument("--json", type=Path, help="where the figures go, and from there into docs/performance.md")
    options = parser.parse_args()
    cases = [measure(options.model, rate, options.steps) for rate in RATES]
    result = {"machine": machine("cpu"), "model": options.model, "steps": options.steps, "cases": cases}
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), as_markdown(result), "attention rows"))


if __name__ == "__main__":
    main()
