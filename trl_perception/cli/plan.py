"""What a recipe will do and need, without loading weights: `trl-perception plan --config RECIPE [--KEY VALUE ...]`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from ..recipe import accelerate_config_path
from .errors import Parser, one_line
from .preflight import check_training

if TYPE_CHECKING:
    from ..planning import RunPlan


@one_line("trl-perception plan")
def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan, with the parts of the memory and their formulas."""
    parser = Parser(prog="trl-perception plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="recipe, a file or a name such as grpo/tiny")
    parser.add_argument("--accelerate_config", help="how it will be launched: a file, or a name such as zero2")
    parser.add_argument("--num_processes", type=int, help="how many processes (default: the accelerate config's, or 1)")
    options, others = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    args = ["--config", options.config, *others]
    check_training(args)
    launch = accelerate_settings(options.accelerate_config)
    print(plan(args, launch, options.num_processes or launch.get("num_processes", 1)).as_text(formulas=True))


def accelerate_settings(name: str | None) -> dict[str, Any]:
    """Return the settings of an accelerate configuration, by file or name; empty without a name."""
    return {} if name is None else yaml.safe_load(accelerate_config_path(name).read_text())


def plan(args: list[str], launch: dict[str, Any], processes: int) -> "RunPlan":
    """Plan a recipe under an accelerate configuration."""
    import torch  # a slow import, after the options are parsed
    from transformers import AutoProcessor

    from ..assets import model_path
    from ..families import family_of_processor
    from ..planning import World, plan_recipe
    from ..train import parse, train_rows

    script, config, model = parse([*args, "--use_cpu", "true"])  # so that a machine without a GPU can plan for one
    sharding = "fsdp" if launch.get("distributed_type") == "FSDP" else "none"
    if stage := launch.get("deepspeed_config", {}).get("zero_stage"):
        sharding = f"zero{stage}"
    world = World(processes, sharding, bf16=config.bf16 or launch.get("mixed_precision") == "bf16")
    on_cpu = launch.get("use_cpu", not (torch.cuda.is_available() or world.bf16))
    path = model_path(model.model_name_or_path)
    processor = AutoProcessor.from_pretrained(
        path, revision=model.model_revision, trust_remote_code=config.trust_remote_code
    )
    preparer = config.prompt_preparer(processor) if family_of_processor(processor) else None
    device = "cpu" if on_cpu else "cuda"
    return plan_recipe(config, model, world=world, rows=train_rows(script), preparer=preparer, device=device)


if __name__ == "__main__":
    main()
