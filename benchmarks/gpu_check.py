"""Check a GPU in one command: `make gpu-check`, or `python -m benchmarks.gpu_check [--size small] [--json FILE]`.

On a Qwen2.5-VL-3B with random weights in bfloat16, without a download:

1. Agreement. Log-probs and gradients of a group (P 2k and 8k, G 8, R 256), packed and plain, with each attention kernel that
   is installed, against plain rows in float32 with the same weights. A path agrees if its error is at most 1.5 times that of
   plain bfloat16 rows with SDPA, which covers a different summation order; packed float32 must agree to 1e-4 and 1e-3.
2. Steps. Whole optimisation steps of every method through its trainer, on synthetic clips.

Prints tables with seconds, tokens a second (prompts and completions of a group) and peak memory beyond the weights. Exit
status 1 where a path does not agree or cannot run, 2 without a GPU. `--size small` does the same on a CPU, in seconds.
"""

import argparse
import copy
import gc
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PrinterCallback
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl.trainer.utils import add_fused_lm_head

from benchmarks.measure import machine, now, peak_memory
from benchmarks.models import random_model
from benchmarks.performance import Group, StepTimes
from trl_perception.data import make_synthetic_dataset
from trl_perception.modeling import group_forward, row_forward
from trl_perception.trainers import TRAINERS

# Cells of 64 tokens; `seconds` of clips at 4 frames a second, two frames a cell; rollouts that do not count.
SIZES = {
    "3b": {
        "model": "3b",
        "device": "cuda",
        "cells": (32, 128),
        "generations": 8,
        "length": 256,
        "seconds": 16.0,
        "resolution": 224,
        "warm": 1,
    },
    "small": {
        "model": "1m",
        "device": "cpu",
        "cells": (2,),
        "generations": 4,
        "length": 16,
        "seconds": 2.0,
        "resolution": 56,
        "warm": 0,
    },
}
REORDERING = 1.5  # times the error of plain bfloat16 rows
FLOAT32_LIMITS = {"logps": 1e-4, "gradient": 1e-3}  # nats; relative
LORA = LoraConfig(r=8, target_modules=r".*language_model.*(q_proj|v_proj)", task_type="CAUSAL_LM")
OPTIONS = {
    "appo": {"accuracy_reward": "variety", "tokens_per_frame": 8},
    "t_grpo": {"accuracy_reward": "variety"},
    "ral": {"num_iterations": 2},
    "attn_distill": {"peft_config": LORA},  # no separate teacher: the base model is the teacher
}
METHODS = {name: OPTIONS.get(name, {}) for name in TRAINERS}


def kernels(device: str) -> list[str]:
    """Attention implementations that can be measured; FlexAttention has no backward on a CPU."""
    installed = {"flash_attention_2": is_flash_attn_2_available(), "flash_attention_3": is_flash_attn_3_available()}
    flex = ["flex_attention"] if device != "cpu" else []
    return ["sdpa", *(name for name, there in installed.items() if there), *flex]


def use_kernel(model: torch.nn.Module, kernel: str) -> None:
    """Set the language model's kernel directly, as transformers refuses FlexAttention for this model family."""
    model.config.get_text_config()._attn_implementation = kernel


def learn(model: torch.nn.Module, group: Group, packed: bool) -> dict[str, torch.Tensor]:
    """Log-probs (G,R), and the gradient of a policy-gradient loss in the first and the last decoder layer, on the CPU.

    Plain rows are run one by one, so that float32 fits.
    """
    advantages = torch.linspace(-1, 1, group.generations, device=group.ids.device)[:, None]
    common = {"completion_width": group.length, "fused_lm_head": True}
    model.zero_grad(set_to_none=True)
    found = []
    for start in range(0, group.generations, group.generations if packed else 1):
        rows = slice(start, group.generations if packed else start + 1)
        inputs = {name: value[rows] for name, value in group.inputs.items()}
        if packed:
            output = group_forward(model, runs=[group.generations], visuals=[group.visual], **common, **inputs)
        else:
            output = row_forward(model, visuals=[group.visual], **common, **inputs)
        logps = output.log_probs[:, -group.length :]
        (-advantages[rows] * torch.exp(logps - logps.detach())).sum().backward()
        found.append(logps.detach().float().cpu())
    gradients = [p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return {"logps": torch.cat(found), "gradient": torch.cat(gradients)}


def errors(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Root mean square of the differences of log-probs in nats; relative error of the gradient."""
    logps = (found["logps"] - exact["logps"]).square().mean().sqrt()
    gradient = (found["gradient"] - exact["gradient"]).norm() / exact["gradient"].norm()
    return {"logps": logps.item(), "gradient": gradient.item()}


def measured(work: Callable[[], dict], tokens: int, device: str) -> tuple[dict | None, dict]:
    """Return the result of `work`, its seconds, tokens per second and peak MiB; or the error of a kernel that cannot run."""
    kept: dict = {}

    def timed() -> None:
        start = now(device)
        kept["result"] = work()
        kept["seconds"] = now(device) - start

    try:
        memory = peak_memory(timed, device)
    except RuntimeError as error:  # one kernel failed; the other paths are still measured
        return None, {"failure": str(error).splitlines()[0][:200]}
    return kept["result"], {"seconds": kept["seconds"], "tokens_s": tokens / kept["seconds"], "peak_mib": memory}


def agreement(plan: dict) -> list[dict]:
    """Compare every path at every length with plain float32 rows."""
    device = plan["device"]
    torch.backends.cudnn.allow_tf32 = False  # of the patch embedding
    model, _ = random_model(plan["model"], device=device, dtype=torch.bfloat16)
    layers = model.model.language_model.layers
    model.requires_grad_(False)
    layers[0].requires_grad_(True)
    layers[-1].requires_grad_(True)
    model.train()
    exact_model = copy.deepcopy(model).float()
    for one in (model, exact_model):
        add_fused_lm_head(one, outputs=("log_probs", "entropy"))
        if device != "cpu":
            one.gradient_checkpointing_enable({"use_reentrant": False})
    rows = []
    for cells in plan["cells"]:
        group = Group(model, cells, plan["generations"], plan["length"], device)
        tokens, common = group.ids.numel(), {"P": len(group.prompt), "G": group.generations, "R": group.length}
        exact, cost = measured(lambda group=group: learn(exact_model, group, False), tokens, device)
        if exact is None:
            return [{**common, "path": "plain sdpa float32", "agrees": False, **cost}]
        rows.append({**common, "path": "plain sdpa float32", "agrees": True, **cost})
        limits = {torch.float32: FLOAT32_LIMITS}
        paths = [(exact_model, "sdpa", True), *((model, k, p) for k in kernels(device) for p in (False, True))]
        for of_path, kernel, packed in paths:
            use_kernel(of_path, kernel)
            found, cost = measured(lambda m=of_path, p=packed, group=group: learn(m, group, p), tokens, device)
            wrong = errors(found, exact) if found else {}
            # The first path in bfloat16, plain with SDPA, is the baseline for the others.
            limit = limits.setdefault(of_path.dtype, {name: REORDERING * value for name, value in wrong.items()})
            agrees = bool(wrong) and bool(limit) and all(wrong[name] <= limit[name] for name in wrong)
            name = f"{'packed' if packed else 'plain'} {kernel} {str(of_path.dtype).removeprefix('torch.')}"
            rows.append({**common, "path": name, "agrees": agrees, **wrong, **cost})
    return rows


def steps(plan: dict) -> list[dict]:
    """Time a rollout of each method with its updates, after the warm-up rollouts."""

    def variety(completions, **columns):
        return [float(len(set(completion[0]["content"])) % 2) for completion in completions]

    device, count, rows = plan["device"], plan["generations"], []
    with tempfile.TemporaryDirectory() as folder:
        clips = {"size": 2, "families": ["static"], "resolution": plan["resolution"], "seconds": plan["seconds"]}
        dataset = make_synthetic_dataset(Path(folder) / "clips", **clips)
        for name, options in METHODS.items():
            options = dict(options)
            extra = {"peft_config": options.pop("peft_config")} if "peft_config" in options else {}
            model, processor = random_model(plan["model"], device=device, dtype=torch.bfloat16)
            updates = options.get("num_iterations", 1)
            config = TRAINERS[name].config_class(
                output_dir=folder,
                per_device_train_batch_size=count,
                num_generations=count,
                max_completion_length=plan["length"],
                generation_kwargs={"min_new_tokens": plan["length"]},
                max_steps=(plan["warm"] + 1) * updates,
                freeze_vision_tower=True,
                video_fps=4.0,
                video_max_frames=64,
                gradient_checkpointing=device != "cpu",
                bf16=True,
                use_cpu=device == "cpu",
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
                **options,
            )
            trainer = TRAINERS[name](
                model=model,
                processing_class=processor,
                reward_funcs=variety,
                args=config,
                train_dataset=dataset,
                **extra,
            )
            trainer.remove_callback(PrinterCallback)
            times = StepTimes(device)
            times.watch(trainer)
            memory = peak_memory(trainer.train, device)
            seconds = sum(times.times[plan["warm"] * updates :])
            tokens = trainer.state.num_input_tokens_seen / (plan["warm"] + 1)
            rows.append({"method": name, "seconds": seconds, "tokens_s": tokens / seconds, "peak_mib": memory})
            del trainer, model, times
            gc.collect()
    return rows


def table(rows: list[dict]) -> str:
    """Format rows as aligned columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in map(row.get, names)] for row in rows
    ]
    cells = [names, *([" " if text == "None" else text for text in row] for row in texts)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells)


def check(size: str) -> dict:
    """Run both parts and print their results as they arrive."""
    plan = SIZES[size]
    result = {"machine": machine(plan["device"]), "size": size}
    print(result["machine"], flush=True)
    for name, part in {"agreement": agreement, "steps": steps}.items():
        result[name] = part(plan)
        print(f"\n{table(result[name])}", flush=True)
    result["agrees"] = all(row["agrees"] for row in result["agreement"])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="3b", choices=SIZES)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    options = parser.parse_args()
    if SIZES[options.size]["device"] == "cuda" and not torch.cuda.is_available():
        print("gpu-check: PyTorch finds no GPU here. `--size small` runs the same on a CPU.", file=sys.stderr)
        return 2
    result = check(options.size)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if not result["agrees"]:
        found = [f"{row['path']} at P {row['P']}" for row in result["agreement"] if not row["agrees"]]
        print(f"gpu-check: does not agree with float32: {', '.join(found)}.", file=sys.stderr)
    return int(not result["agrees"])


if __name__ == "__main__":
    logging.getLogger("trl_perception").setLevel(logging.ERROR)  # weights are bfloat16 on purpose and are discarded
    sys.exit(main())
