"""`trl-perception COMMAND ...`."""

import sys
from importlib import import_module

from .. import __version__
from ..recipe import nearest

COMMANDS = {
    "recipes": "the recipes and accelerate configurations that ship with the package: trl-perception recipes",
    "prepare": "rows from a published data set: trl-perception prepare video-r1 --source DIR --output DIR",
    "train": "train from a recipe: trl-perception train --config grpo/tiny",
    "serve": "vLLM's server for the rollouts of a recipe: trl-perception serve --config grpo/qwen2_5_vl_7b",
    "plan": "what a recipe will do and need, without loading weights: trl-perception plan --config grpo/tiny",
    "ask": "ask a model about a video or an image: trl-perception ask tiny clip.mp4 'What colour is the second scene?'",
    "evaluate": "accuracy with intervals: trl-perception evaluate --model RUN --data rows.jsonl --output runs/eval",
    "study": "methods x seeds compared, with intervals: trl-perception study --config study/smoke",
    "report": "what a run learned, as one HTML file: trl-perception report runs/grpo-tiny",
    "show": "answers before and after training: trl-perception show --model RUN --recipe grpo/tiny",
    "push": "push a finished run to the Hub: trl-perception push runs/grpo-tiny USER/NAME",
}


def main(argv: list[str] | None = None) -> None:
    """Pass the arguments to a command; each has its own --help."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--version"]:
        print(f"trl-perception {__version__}")
        return
    if not argv or argv[0] not in COMMANDS:
        usage = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
        if argv and argv[0] not in ("-h", "--help"):
            print(
                f"trl-perception: unknown command {argv[0]!r}.{nearest(argv[0], COMMANDS)} --help lists the commands.",
                file=sys.stderr,
            )
            raise SystemExit(2)
        print(f"usage: trl-perception COMMAND ... (--help after a command explains it; --version)\n{usage}")
        raise SystemExit(0 if argv else 2)
    # Imported lazily: --help should not wait for torch.
    import_module(f"trl_perception.cli.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    main()
