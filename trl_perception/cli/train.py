"""Train from a recipe: `trl-perception train --config appo/tiny [--accelerate_config ddp --num_processes 4] [--KEY VALUE ...]`."""

import sys

from ..recipe import accelerate_config_path
from .errors import Parser, one_line
from .preflight import check_training

# Options of `accelerate launch`: with --accelerate_config they are passed to it, and override the configuration.
LAUNCH_KEYS = (
    *("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
    *("gpu_ids", "num_cpu_threads_per_process"),
)


def main(argv: list[str] | None = None) -> None:
    """Check the settings, then train: here, or in the processes of an accelerate configuration."""
    with one_line("trl-perception train"):
        args, launch = for_launcher(sys.argv[1:] if argv is None else argv)
        if "--help" not in args and "-h" not in args:
            check_training(args)
    if launch is None:
        from ..train import main as train

        train(args)
        return
    from accelerate.commands.launch import launch_command, launch_command_parser

    # --quiet: the failing process has already reported its error.
    launch_command(launch_command_parser().parse_args(["--quiet", *launch, "-m", "trl_perception.train", *args]))


def for_launcher(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """Split off the arguments of `accelerate launch`; these are None without a configuration.

    Errors: FileNotFoundError for a configuration that does not exist; ValueError for its keys without one.
    """
    parser = Parser(prog="trl-perception train", add_help=False, allow_abbrev=False)
    for key in ("accelerate_config", *LAUNCH_KEYS):
        parser.add_argument(f"--{key}", f"--{key.replace('_', '-')}")
    options, args = parser.parse_known_args(argv)
    launch = [part for key in LAUNCH_KEYS if (value := getattr(options, key)) for part in (f"--{key}", value)]
    if options.accelerate_config is not None:
        return args, ["--config_file", str(accelerate_config_path(options.accelerate_config)), *launch]
    if launch:
        raise ValueError(
            f"{launch[0]} is for accelerate launch. Name a configuration too, such as --accelerate_config ddp."
        )
    return args, None
