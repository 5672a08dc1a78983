"""Evaluate a model on held-out rows, or compare two evaluations row by row.

trl-perception evaluate --model tiny --data synthetic --synthetic '{"size": 70}' --output runs/eval
trl-perception evaluate --compare runs/eval-before runs/eval-after
"""

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipe import read_recipe
from .errors import Parser, one_line, unknown_option
from .preflight import check_evaluation

if TYPE_CHECKING:
    from ..evaluation import EvaluationSettings

FROM_RECIPE = {
    "dataset_name": "data",
    "dataset_config": "data_config",
    "dataset_test_split": "split",
    "reward_funcs": "rewards",
    "max_completion_length": "max_new_tokens",
    **{
        key: key
        for key in (
            *(
                "synthetic",
                "prompt_template",
                "chat_template_kwargs",
                "max_prompt_length",
                "on_bad_media",
                "check_rows",
                "position_rule",
                "dtype",
                "attn_implementation",
            ),
            *("video_fps", "video_min_frames", "video_max_frames", "video_min_pixels", "video_max_pixels"),
            *("video_total_pixels", "image_min_pixels", "image_max_pixels"),
            *("media_max_pixels", "media_max_frames", "media_timeout", "media_cache_dir", "media_cache_dir_gb"),
        )
    },
}
"""Keys of a training recipe that an evaluation uses, and their names here."""


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    pass


def parse(argv: list[str] | None = None) -> "tuple[Namespace, EvaluationSettings | None]":
    """Parse the options of the command, and settings from recipe and command line; None for a comparison.

    The command line overrides the recipe.

    Errors: ValueError for an unknown option, with the nearest known one.
    """
    from transformers import HfArgumentParser

    from ..evaluation import EvaluationSettings

    class OneLine(HfArgumentParser):
        error = Parser.error

    parser = OneLine(
        EvaluationSettings,
        prog="trl-perception evaluate",
        usage="%(prog)s --model MODEL --data DATA --output FOLDER [--OPTION VALUE ...]",
        description=__doc__,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="recipe whose data, media, length, reward and dtype settings are taken over")
    parser.add_argument(
        "--compare", nargs=2, metavar=("FIRST", "SECOND"), help="two output folders: second - first, row by row"
    )
    argv = sys.argv[1:] if argv is None else argv
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ValueError(unknown_option(unknown[0], known))
    if options.compare:
        return options, None
    if options.recipe:
        parser.set_defaults(**settings_of_recipe(options.recipe))
        options = parser.parse_args(argv)
    settings = EvaluationSettings(**{f.name: getattr(options, f.name) for f in fields(EvaluationSettings)})
    return options, settings


def settings_of_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a training recipe that an evaluation uses, by the names of `EvaluationSettings`."""
    return {FROM_RECIPE[key]: value for key, value in read_recipe(name).items() if key in FROM_RECIPE}


@one_line("trl-perception evaluate")
def main(argv: list[str] | None = None) -> None:
    """Evaluate and print the figures, or compare and print the differences."""
    argv = sys.argv[1:] if argv is None else argv
    check_evaluation(argv)
    options, settings = parse(argv)
    if options.compare:
        _compare(*options.compare, output=options.output, resamples=options.resamples, seed=options.seed)
        return
    from ..evaluation import evaluate
    from ..evaluation.store import PREDICTIONS, SUMMARY
    from ..evaluation.tables import figures_table

    done = evaluate(settings)
    if done is None:  # one of several processes, not the main one
        return
    left_out = done.summary["left_out"]
    print(f"{settings.model} on {settings.data}: percent, with 95 % bootstrap intervals over rows\n")
    print(figures_table(done.figures))
    if left_out["rows"]:
        print(f"\nLeft out: {left_out['rows']} of {done.summary['rows']} rows, whose media could not be used.")
        for row, reason in list(left_out["reasons"].items())[:5]:
            print(f"  {row}: {reason}")
    print(f"\n{Path(settings.output) / SUMMARY}\n{Path(settings.output) / PREDICTIONS}")


def _compare(first: str, second: str, *, output: str | None, resamples: int, seed: int) -> None:
    from ..evaluation import compare
    from ..evaluation.compare import comparison_json, different_settings
    from ..evaluation.store import write_text
    from ..evaluation.tables import comparison_table

    table = compare(first, second, resamples=resamples, seed=seed)
    settings = different_settings(first, second)
    print(f"first {first}, second {second}: percent, paired by row, with 95 % bootstrap intervals\n")
    print(comparison_table(table))
    for key, (one, other) in settings.items():
        print(f"\nNote: {key} differs beside the model: {one!r} and {other!r}.")
    if output:
        result = {
            "first": first,
            "second": second,
            "different_settings": settings,
            "differences": comparison_json(table),
        }
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(output), json.dumps(result, indent=2) + "\n")
        print(f"\n{output}")


if __name__ == "__main__":
    main()
