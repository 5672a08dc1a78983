"""`trl-perception COMMAND ...`."""

import sys
from importlib import import_module

COMMANDS = {
    "prepare": "rows from a published data set: trl-perception prepare video-r1 --source DIR --output DIR",
    "train": "train from a recipe: trl-perception train --config recipes/grpo/tiny.yaml",
    "plan": "what a recipe will do and need, without loading weights: trl-perception plan --config grpo/tiny",
    "ask": "ask a model about a video or an image: trl-perception ask tiny clip.mp4 'What colour is the second scene?'",
    "evaluate": "accuracy with intervals: trl-perception evaluate --model RUN --data rows.jsonl --output runs/eval",
    "report": "what a run learned, as one HTML file: trl-perception report runs/grpo-tiny",
    "show": "answers before and after training: trl-perception show --model RUN --recipe recipes/grpo/tiny.yaml",
    "push": "push a finished run to the Hub: trl-perception push runs/grpo-tiny USER/NAME",
}


def main(argv: list[str] | None = None) -> None:
    """Hand the arguments to a command; each explains itself with --help."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        usage = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
        wrong = f"Unknown command {argv[0]!r}.\n" if argv and argv[0] not in ("-h", "--help") else ""
        print(f"{wrong}usage: trl-perception COMMAND ...\n{usage}", file=sys.stderr if wrong else sys.stdout)
        raise SystemExit(2 if wrong or not argv else 0)
    # Imported when asked for: --help should not wait for torch.
    module = import_module({"train": "trl_perception.train"}.get(argv[0], f"trl_perception.cli.{argv[0]}"))
    module.main(argv[1:])


if __name__ == "__main__":
    main()
