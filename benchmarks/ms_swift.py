"""A step of GRPO on an image by ms-swift, TRL and this package: `python -m benchmarks.ms_swift --python ENV/bin/python`.

ENV has ms-swift (`pip install ms-swift msgspec torch torchvision qwen-vl-utils`), which wants other versions of TRL and
transformers than this package. Model, image, sizes and measure are those of part `peer` of `benchmarks.performance`; each
trainer runs twice in one process, and the second run counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measure import machine, now, peak_memory

PLAN = {"model": "20m", "device": "cpu", "dtype": torch.float32, "resolution": 224, "generations": 8, "length": 64}
ROOT = Path(__file__).parents[1]
SETTINGS = {
    "rlhf_type": "grpo",
    "model_type": "qwen2_5_vl",
    "template": "qwen2_5_vl",
    "system": "",
    "reward_funcs": "variety",
    "tuner_type": "full",
    "torch_dtype": "float32",
    "num_generations": PLAN["generations"],
    "per_device_train_batch_size": PLAN["generations"],
    "max_completion_length": PLAN["length"],
    "max_length": 4096,
    "max_steps": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "beta": 0,
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "split_dataset_ratio": 0,
    "dataloader_num_workers": 0,
    "use_cpu": "true",
    "disable_tqdm": "true",
    **dict.fromkeys(("freeze_vit", "freeze_aligner", "freeze_llm", "use_vllm", "bf16", "fp16"), "false"),
    **dict.fromkeys(("gradient_checkpointing", "vit_gradient_checkpointing", "load_from_cache_file"), "false"),
}


def prepare(folder: Path) -> None:
    """Write what ms-swift reads: the model with its processor, the image, and the row twice, as `peer` has it."""
    import numpy as np
    from PIL import Image

    from benchmarks.models import random_model

    model, processor = random_model(PLAN["model"])
    side = 4 * PLAN["resolution"]
    processor.image_processor.size = {"shortest_edge": side**2, "longest_edge": side**2}
    model.generation_config.min_new_tokens = PLAN["length"]
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    messages = [{"role": "user", "content": "<image>What is shown?"}]
    row = json.dumps({"messages": messages, "images": [str(folder / "image.png")]})
    (folder / "rows.jsonl").write_text(f"{row}\n{row}\n")


def step(folder: Path) -> None:
    """In ms-swift's environment: run a step twice, write the figures of the second to `folder`/figures.json."""
    from swift.pipelines.train.rlhf import SwiftRLHF
    from swift.rewards import ORM, orms
    from swift.template.templates.qwen import Qwen2_5VLTemplate, Qwen2VLTemplate
    from transformers import TrainerCallback

    class Variety(ORM):
        def __call__(self, completions, **columns):
            return [float(len(set(completion)) % 2) for completion in completions]

    class StepTime(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.seconds = now("cpu")

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds = now("cpu") - self.seconds

    found = {}

    def train(pipeline, trainer):
        time = StepTime()
        trainer.add_callback(time)
        found.update(peak_mib=peak_memory(trainer.train, "cpu"), seconds=time.seconds)
        return {}

    orms["variety"], SwiftRLHF.train = Variety, train
    ids = json.loads((folder / "model" / "config.json").read_text())
    for template in (Qwen2VLTemplate, Qwen2_5VLTemplate):  # they have those of Qwen's own vocabulary
        template.image_token_id, template.video_token_id = ids["image_token_id"], ids["video_token_id"]
    given = SETTINGS | {"model": folder / "model", "dataset": folder / "rows.jsonl", "output_dir": folder / "run"}
    for _ in range(2):
        SwiftRLHF([word for key, value in given.items() for word in (f"--{key}", str(value))]).main()
    found |= {"trainer": f"ms-swift {version('ms-swift')}, transformers {version('transformers')}"}
    (folder / "figures.json").write_text(json.dumps(found))


def as_markdown(result: Mapping) -> str:
    """A row a trainer."""
    *_, ours = result["trainers"]
    lines = [result["machine"], "", "| trainer | time of a step | peak memory |", "|---|---:|---:|"]
    for one in result["trainers"]:
        lines.append(
            f"| {one['trainer']} | {one['seconds'] / ours['seconds']:.1f} | {one['peak_mib'] / ours['peak_mib']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the interpreter of the environment with ms-swift")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # for the call in that environment
    parser.add_argument("--json", type=Path, help="where the figures go, and from there into docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folder:
        step(options.folder)
        return
    from benchmarks.performance_table import with_table
    from benchmarks.steps import peer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        command = [options.python, "-m", "benchmarks.ms_swift", "--folder", name]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        theirs = json.loads((folder / "figures.json").read_text())
    trl, ours = peer(PLAN)
    versions = f", transformers {version('transformers')}"
    trl["trainer"], ours["trainer"] = f"TRL {version('trl')}{versions}", f"trl_perception{versions}"
    result = {"machine": machine("cpu"), "trainers": [theirs, trl, ours]}
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        page = ROOT / "docs" / "performance.md"
        page.write_text(with_table(page.read_text(), as_markdown(result), "peers"))


if __name__ == "__main__":
    main()
