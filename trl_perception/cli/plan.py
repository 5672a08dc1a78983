"""What a recipe will do and need, without loading weights: `trl-perception plan --config RECIPE [--KEY VALUE ...]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoProcessor

from ..assets import model_path
from ..media import has_visual_grids
from ..planning import RunPlan, World, plan_recipe
from ..recipe import recipe_path
from ..train import parse, train_rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan, with the parts of the memory and their formulas."""
    parser = argparse.ArgumentParser(prog="trl-perception plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="recipe, a file or a name such as grpo/tiny")
    parser.add_argument("--accelerate_config", help="how it will be launched: a file, or a name such as zero2")
    parser.add_argument(
        "--num_processes", type=int, help="how many processes (default: those of the accelerate config)"
    )
    given, others = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        launch = accelerate_settings(given.accelerate_config)
        processes = given.num_processes or launch.get("num_processes", 1)
        print(plan(["--config", given.config, *others], launch, processes).as_text(formulas=True))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error


def accelerate_settings(name: str | None) -> dict[str, Any]:
    """The settings of an accelerate configuration, by file or name; none where there is no name."""
    if name is None:
        return {}
    path = Path(name) if Path(name).is_file() else recipe_path(f"accelerate_configs/{name}")
    return yaml.safe_load(path.read_text())


def plan(args: list[str], launch: dict[str, Any], processes: int) -> RunPlan:
    """The plan of a recipe under an accelerate configuration."""
    script, config, model = parse([*args, "--use_cpu", "true"])  # a machine without a GPU plans for one
    sharding = {"FSDP": "fsdp"}.get(launch.get("distributed_type"), "none")
    if stage := launch.get("deepspeed_config", {}).get("zero_stage"):
        sharding = f"zero{stage}"
    world = World(processes, sharding, bf16=config.bf16 or launch.get("mixed_precision") == "bf16")
    on_cpu = launch.get("use_cpu", not (torch.cuda.is_available() or world.bf16))
    processor = AutoProcessor.from_pretrained(
        model_path(model.model_name_or_path),
        revision=model.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    device = "cpu" if on_cpu else "cuda"
    preparer = config.prompt_preparer(processor) if has_visual_grids(processor) else None
    return plan_recipe(config, model, world=world, rows=train_rows(script), preparer=preparer, device=device)


if __name__ == "__main__":
    main()
