"""Check a GPU in one command: `make gpu-check`, or `python -m benchmarks.gpu_check [--size small] [--json FILE]`.

On models with random weights in bfloat16, without a download:

1. Agreement. Log-probs and gradients of a group (P 2k and 8k, G 8, R 256), packed and plain, with each attention kernel that
   is installed, against plain rows in float32 with the same weights. A path agrees if its error is at most 1.5 times that of
   plain bfloat16 rows with SDPA, which covers a different summation order; packed float32 must agree to 1e-4 and 1e-3.
   A Qwen2.5-VL-3B; a Qwen3-VL-4B, and a Qwen3.5 of the same sizes, at P 2k.
2. Steps. Whole optimisation steps of every method through its trainer, on synthetic clips, with the memory that
   `trl-perception plan` estimates.
3. Peer. A step of GRPO on images, here and by TRL's own trainer.

Prints tables with seconds, tokens a second (prompts and completions of a group), the share of the card's matrix products that
the model's operations are (`mfu`), and peak memory beyond the weights. Exit status 1 where a path does not agree or cannot
run, 2 without a GPU. `--size small` does the same on a CPU, in seconds; `--parts` chooses.
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
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl.trainer.utils import add_fused_lm_head

from benchmarks.families import TOKENS_A_CELL, family_model
from benchmarks.measure import machine, now, peak_memory
from benchmarks.models import random_model
from benchmarks.paths import Group
from benchmarks.steps import peer, settings, timed_rollout, variety
from trl_perception.data import make_synthetic_dataset
from trl_perception.modeling import group_forward, row_forward
from trl_perception.planning import plan_run, world_of
from trl_perception.planning.memory import weights_size
from trl_perception.planning.plan import prompt_sizes
from trl_perception.trainers import TRAINERS

# Cells of 64 tokens by family; `seconds` of clips at 4 frames a second, two frames a cell.
SIZES = {
    "3b": {
        "model": "3b",
        "families": {"qwen2_5_vl": ("3b", (32, 128)), "qwen3_vl": ("4b", (32,)), "qwen3_5": ("4b", (32,))},
        "device": "cuda",
        "dtype": torch.bfloat16,
        "matrix": 8192,
        "generations": 8,
        "length": 256,
        "seconds": 16.0,
        "resolution": 224,
    },
    "small": {
        "model": "1m",
        "families": dict.fromkeys(("qwen2_5_vl", "qwen3_vl", "qwen3_5"), ("1m", (2,))),
        "device": "cpu",
        "dtype": torch.bfloat16,
        "matrix": 256,
        "generations": 4,
        "length": 16,
        "seconds": 2.0,
        "resolution": 56,
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
    """Log-probs (G,R), and the gradient of a policy-gradient loss in the first and the last decoder layer.

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
        found.append(logps.detach())
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return {"logps": torch.cat(found), "gradient": torch.cat(gradients)}


def errors(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Root mean square of the differences of log-probs in nats; relative error of the gradient."""
    found, exact = ({name: value.float() for name, value in one.items()} for one in (found, exact))
    logps = (found["logps"] - exact["logps"]).square().mean().sqrt()
    gradient = (found["gradient"] - exact["gradient"]).norm() / exact["gradient"].norm()
    return {"logps": logps.item(), "gradient": gradient.item()}


def shown(row: dict) -> dict:
    """Print a row before the table is whole."""
    print("  ".join(f"{name} {cell(value)}" for name, value in row.items()), flush=True)
    return row


def cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def matrix_rate(size: int, device: str) -> float:
    """Operations a second of a matrix product in bfloat16, `size` x `size`: the card's ceiling."""
    one = torch.randn(size, size, device=device).bfloat16()
    one @ one
    start = now(device)
    for _ in range(10):
        one @ one
    return 10 * 2 * size**3 / (now(device) - start)


def operations(model: torch.nn.Module, group: Group, packed: bool) -> float:
    """Multiplications and additions of `learn`, without attention's and without those that checkpointing repeats.

    4 N n in the decoder (forward, gradients of activations), 4 V h G R in the head, 2 N' n' in the tower, a run a row if
    plain; gradients of the weights of two layers are left out.
    """
    count, width = group.ids.shape
    tokens = len(group.prompt) - 1 + count * (group.length + 1) if packed else count * width
    layers, tower = (
        sum(p.numel() for p in part.parameters()) for part in (model.model.language_model.layers, model.model.visual)
    )
    patches = 4 * TOKENS_A_CELL * int(group.visual.video_grid_thw[0, 0]) * (1 if packed else count)
    head = model.get_output_embeddings().weight.numel()
    return 4 * layers * tokens + 4 * head * count * group.length + 2 * tower * patches


def measured(work: Callable[[], dict], tokens: int, device: str, warm: bool) -> tuple[dict | None, dict]:
    """Return the result of `work`, its seconds, tokens per second and peak MiB; or the error of a kernel that cannot run."""
    kept: dict = {}

    def timed() -> None:
        start = now(device)
        kept["result"] = work()
        kept["seconds"] = now(device) - start

    try:
        if warm:
            work()
        memory = peak_memory(timed, device)
    except RuntimeError as error:  # one kernel failed; the other paths are still measured
        return None, {"failure": str(error).splitlines()[0][:200]}
    return kept["result"], {"seconds": kept["seconds"], "tokens_s": tokens / kept["seconds"], "peak_mib": memory}


def agreement(plan: dict) -> list[dict]:
    """Compare every path of every family at every length with plain float32 rows."""
    torch.backends.cudnn.allow_tf32 = False  # of the patch embedding
    ceiling = matrix_rate(plan["matrix"], plan["device"])
    print(f"matrix products in bfloat16: {ceiling / 1e12:.3g} TFLOP/s", flush=True)
    rows = []
    for family, (size, cells) in plan["families"].items():
        given = {"device": plan["device"], "dtype": torch.bfloat16}
        model = random_model(size, **given)[0] if family == "qwen2_5_vl" else family_model(family, size, **given)
        rows += _agreement_of(model, plan, family, cells, ceiling)
        del model
        gc.collect()
    return rows


def _agreement_of(model: torch.nn.Module, plan: dict, family: str, lengths: tuple, ceiling: float) -> list[dict]:
    device = plan["device"]
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
    for cells in lengths:
        group = Group(model, cells, plan["generations"], plan["length"], device)
        common = {"family": family, "P": len(group.prompt), "G": group.generations, "R": group.length}

        def run(of_path, kernel, packed, warm, group=group):
            use_kernel(of_path, kernel)
            found, cost = measured(lambda: learn(of_path, group, packed), group.ids.numel(), device, warm)
            if found and of_path is model:
                cost["mfu"] = operations(model, group, packed) / cost["seconds"] / ceiling
            return found, cost

        exact, cost = run(exact_model, "sdpa", False, False)
        if exact is None:
            return [*rows, {**common, "path": "plain sdpa float32", "agrees": False, **cost}]
        rows.append(shown({**common, "path": "plain sdpa float32", "agrees": True, **cost}))
        limits = {torch.float32: FLOAT32_LIMITS}
        measured_kernels = kernels(device) if cells == lengths[0] else ["sdpa"]
        paths = [(exact_model, "sdpa", True), *((model, k, p) for k in measured_kernels for p in (False, True))]
        for of_path, kernel, packed in paths:
            found, cost = run(of_path, kernel, packed, cells == lengths[0])
            wrong = errors(found, exact) if found else {}
            # The first path in bfloat16, plain with SDPA, is the baseline for the others.
            limit = limits.setdefault(of_path.dtype, {name: REORDERING * value for name, value in wrong.items()})
            agrees = bool(wrong) and bool(limit) and all(wrong[name] <= limit[name] for name in wrong)
            name = f"{'packed' if packed else 'plain'} {kernel} {str(of_path.dtype).removeprefix('torch.')}"
            rows.append(shown({**common, "path": name, "agrees": agrees, **wrong, **cost}))
    return rows


def steps(plan: dict) -> list[dict]:
    """Time a rollout of each method with its updates, after one of GRPO that does not count."""
    device, rows = plan["device"], []
    with tempfile.TemporaryDirectory() as folder:
        clips = {"size": 2, "families": ["static"], "resolution": plan["resolution"], "seconds": plan["seconds"]}
        dataset = make_synthetic_dataset(Path(folder) / "clips", **clips)
        for name in ("grpo", *METHODS):
            options = {"freeze_vision_tower": True, "video_fps": 4.0, "video_max_frames": 64, **METHODS[name]}
            extra = {"peft_config": options.pop("peft_config")} if "peft_config" in options else {}
            model, processor = random_model(plan["model"], device=device, dtype=torch.bfloat16)
            config = TRAINERS[name].config_class(**settings(plan, folder), **options)
            config.max_steps = config.num_iterations
            trainer = TRAINERS[name](
                model=model,
                processing_class=processor,
                reward_funcs=variety,
                args=config,
                train_dataset=dataset,
                **extra,
            )
            estimate = plan_run(
                trainer.model,
                config,
                world=world_of(trainer.accelerator),
                rows=len(dataset),
                sizes=prompt_sizes(trainer.prompt_preparer, dataset),
                device=device,
            )
            planned = (estimate.peak - weights_size(trainer.model)) / 2**20
            rows.append(shown({"method": name, **timed_rollout(trainer, plan), "planned_mib": planned}))
            del trainer, model
            gc.collect()
    return rows[1:]


def peer_rows(plan: dict) -> list[dict]:
    """Time TRL's trainer and this package's."""
    return [shown(row) for row in peer(plan)]


PARTS = {"agreement": agreement, "steps": steps, "peer": peer_rows}


def table(rows: list[dict]) -> str:
    """Format rows as aligned columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([cell(row.get(name, " ")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells)


def check(size: str, parts: list[str], families: list[str], file: Path | None = None) -> dict:
    """Run the parts; print their results, and write those so far to a file, as they arrive."""
    plan = {**SIZES[size], "families": {name: SIZES[size]["families"][name] for name in families}}
    result = {"machine": machine(plan["device"]), "size": size}
    print(result["machine"], flush=True)
    for name in parts:
        result[name] = PARTS[name](plan)
        result["agrees"] = all(row["agrees"] for row in result.get("agreement", []))
        print(f"\n{table(result[name])}", flush=True)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="3b", choices=SIZES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--families", nargs="+", default=list(SIZES["3b"]["families"]), choices=SIZES["3b"]["families"])
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    options = parser.parse_args()
    if SIZES[options.size]["device"] == "cuda" and not torch.cuda.is_available():
        print("gpu-check: PyTorch finds no GPU here. `--size small` runs the same on a CPU.", file=sys.stderr)
        return 2
    result = check(options.size, options.parts, options.families, options.json)
    if not result["agrees"]:
        found = [f"{row['family']} {row['path']} at P {row['P']}" for row in result["agreement"] if not row["agrees"]]
        print(f"gpu-check: does not agree with float32: {', '.join(found)}.", file=sys.stderr)
    return int(not result["agrees"])


if __name__ == "__main__":
    logging.getLogger("trl_perception").setLevel(logging.ERROR)  # weights are bfloat16 on purpose and are discarded
    sys.exit(main())
