"""Run by test_memory.py: the peak memory of a training step, measured and estimated, in MiB.

python -m tests.planning.peak_of_a_step OUTPUT_DIR [--option value ...]
"""

import json
import sys

import torch

from benchmarks.measure import peak_memory
from trl_perception.planning import World, plan_recipe
from trl_perception.train import build, parse, train_rows

OPTIONS = ["--config", "grpo/tiny", "--bf16", "false", "--use_cpu", "true", "--max_steps", "2", "--report_to", "none"]
OPTIONS += ["--per_device_train_batch_size", "64", "--generation_kwargs", '{"min_new_tokens": 48}']
OPTIONS += ["--max_grad_norm", "0", "--report_every", "1000", "--disable_tqdm", "true"]


def main(output_dir: str, *extra: str) -> None:
    script, config, model = parse([*OPTIONS, "--output_dir", output_dir, *extra])
    trainer = build(script, config, model)
    rows, preparer = train_rows(script), trainer.prompt_preparer
    plan = plan_recipe(config, model, world=World(), rows=rows, preparer=preparer, device="cpu")
    measured = {}
    step, rollout = trainer.training_step, trainer._generate_and_score_completions

    def measured_as(name, work):
        results = []
        measured[name] = peak_memory(lambda: results.append(work()), "cpu")
        return results[0]

    def whole_step(wrapped, inputs, items=None):
        prepared = trainer._prepare_inputs(inputs)
        trainer._prepare_inputs = lambda _: prepared
        loss = measured_as("update", lambda: step(wrapped, inputs, items))
        del trainer._prepare_inputs
        return loss

    trainer._generate_and_score_completions = lambda inputs: measured_as("rollout", lambda: rollout(inputs))
    trainer.training_step = whole_step
    trainer.train()
    held = sum(part.size for part in plan.memory if part.moment == "always") / 2**20
    found = held + max(measured.values())  # of the second step: the first makes one-time allocations
    print(json.dumps({"found": found, "estimate": plan.peak / 2**20, "plan": plan.as_text(formulas=True)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
