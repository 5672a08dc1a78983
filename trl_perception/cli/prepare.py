"""Published data sets to rows for training: `trl-perception prepare NAME --source DIR --output DIR`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..assets import model_path
from ..data.adapters import ADAPTERS, Source, get_adapter
from ..data.names import CHECKS, MALFORMED
from ..data.templates import TEMPLATES, get_template
from ..recipe import read_recipe
from .errors import Parser, one_line

if TYPE_CHECKING:
    from ..data.preparation import PrepareOptions
    from ..media import ProcessorSizes

PUBLISHED = ("Qwen/Qwen2-VL-", "Qwen/Qwen2.5-VL-")
VIDEO_KEYS = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")
LIMIT_KEYS = ("max_pixels", "max_frames", "timeout")
RECIPE_KEYS = (
    *(f"video_{key}" for key in VIDEO_KEYS),
    *("image_min_pixels", "image_max_pixels"),
    *(f"media_{key}" for key in LIMIT_KEYS),
)


@one_line("trl-perception prepare")
def main(argv: list[str] | None = None) -> None:
    """Prepare one split and print what was kept and dropped."""
    parser = build_parser()
    given = parser.parse_args(argv)
    if given.recipe:
        parser.set_defaults(**recipe_settings(given.recipe))
        given = parser.parse_args(argv)
    get_adapter(given.name), get_template(given.template)
    if given.model:
        model_path(given.model)
    source = Path(given.source).expanduser()
    if not source.exists():
        raise FileNotFoundError(
            f"The source {given.source} does not exist (looked from {Path.cwd()}). Correct --source."
        )
    from ..data.preparation import as_text, prepare  # a slow import, after the options are parsed

    try:
        summary = prepare(
            given.name,
            Source(source, given.split or _first_split(given.name), _path(given.media)),
            Path(given.output).expanduser(),
            read_options(given),
            workers=given.workers,
            restart=given.restart,
        )
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. The same command resumes after the last finished shard.\n")
        raise SystemExit(130) from None
    print(f"{as_text(summary)}\n  {given.output}")


def build_parser() -> Parser:
    layouts = "\n".join(f"  {name:<20}{adapter.title}: {adapter.layout}" for name, adapter in ADAPTERS.items())
    parser = Parser(
        prog="trl-perception prepare",
        description=f"{__doc__}\n\ndata sets:\n{layouts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="which data set")
    parser.add_argument("--source", required=True, help="its folder as published, or the file with the records")
    parser.add_argument("--output", required=True, help="folder to write; splits may share it")
    parser.add_argument("--split", help="which split (default: the first published, or train)")
    parser.add_argument("--media", help="folder that media paths count from (default: the source)")
    parser.add_argument("--restart", action="store_true", help="throw away what the output holds of this split")
    parser.add_argument("--workers", type=int, default=4, help="threads that look at media (default: %(default)s)")

    parser.add_argument(
        "--shard-size", type=int, default=2000, help="records between two points from which a run can resume"
    )

    rows = parser.add_argument_group("rows")
    rows.add_argument("--limit", type=int, help="most rows kept")
    rows.add_argument("--problem-types", nargs="+", help="keep these types")
    rows.add_argument("--min-duration", type=float, help="fewest seconds of video; rows without video stay")
    rows.add_argument("--max-duration", type=float, help="most seconds of video")
    rows.add_argument("--pass-rates", help="parquet or JSONL with a model's pass rate for each id")
    rows.add_argument("--pass-rate-columns", nargs=2, default=["id", "pass_rate"], metavar=("ID", "RATE"))
    rows.add_argument("--min-pass-rate", type=float, default=0.0)
    rows.add_argument("--max-pass-rate", type=float, default=1.0)
    rows.add_argument("--template", default="none", help=f"prompt template: {', '.join(TEMPLATES)}")
    rows.add_argument("--malformed", choices=MALFORMED, default="error", help="records that break the layout")

    media = parser.add_argument_group("media")
    media.add_argument("--check", choices=CHECKS, default="exists", help="decode takes as long as training does")
    media.add_argument("--relative-media", action="store_true", help="write paths relative to the output folder")
    media.add_argument("--recipe", help="take the model, and the video and image settings, of this recipe")
    media.add_argument("--model", help="whose processor sizes media; without one, the published ones of Qwen2.5-VL")
    for key in VIDEO_KEYS:
        media.add_argument(f"--video-{key.replace('_', '-')}", type=float if key == "fps" else int)
    media.add_argument("--image-min-pixels", type=int)
    media.add_argument("--image-max-pixels", type=int)
    for key in LIMIT_KEYS:
        media.add_argument(f"--media-{key.replace('_', '-')}", type=float if key == "timeout" else int)
    return parser


def read_options(given: argparse.Namespace) -> "PrepareOptions":
    """Convert the arguments of a command line to options."""
    from ..data.preparation import PrepareOptions
    from ..media import MediaLimits, VideoSettings

    def of(prefix: str, keys: Sequence[str]) -> dict[str, float]:
        values = {key: getattr(given, f"{prefix}_{key}") for key in keys}
        return {key: value for key, value in values.items() if value is not None}

    names = {f.name for f in fields(PrepareOptions)} & set(vars(given))
    values = {name: getattr(given, name) for name in names}
    values["problem_types"] = given.problem_types and tuple(given.problem_types)
    values["pass_rates"] = _path(given.pass_rates)
    values["pass_rate_columns"] = tuple(given.pass_rate_columns)
    return PrepareOptions(
        **values,
        video=VideoSettings(**of("video", VIDEO_KEYS)),
        image_limits=(given.image_min_pixels, given.image_max_pixels),
        media_limits=MediaLimits(**of("media", LIMIT_KEYS)),
        sizes=processor_sizes(given.model),
    )


def recipe_settings(name: str) -> dict[str, float]:
    """Return the model and the `video_...`, `image_...` and `media_...` settings of a recipe.

    Errors: FileNotFoundError with the nearest name.
    """
    values = read_recipe(name)
    settings = {key: values[key] for key in RECIPE_KEYS if values.get(key) is not None}
    model = values.get("model_name_or_path")
    return {**settings, **({} if model is None else {"model": model})}


def processor_sizes(model: str | None) -> "ProcessorSizes":
    """Return the sizes of a model's processor; the published Qwen2-VL and Qwen2.5-VL need no download.

    Errors: ValueError for a model whose processor cannot be read, or is of no supported family.
    """
    from ..families import family_of_processor, supported
    from ..media import ProcessorSizes

    if model is None or (model.startswith(PUBLISHED) and not Path(model).exists()):
        return ProcessorSizes()
    from transformers import AutoProcessor  # a slow import

    try:
        processor = AutoProcessor.from_pretrained(model_path(model))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The processor of {model} cannot be read ({str(error).splitlines()[0]}). Give --model the folder of a model, or "
            "one on the Hub."
        ) from error
    family = family_of_processor(processor)
    if family is None:
        raise ValueError(
            f"{model} has a {type(processor).__name__}. Give --model one of these families: {supported()}."
        )
    return family.sizes(processor)


def _first_split(name: str) -> str:
    splits = get_adapter(name).splits
    return splits[0] if splits else "train"


def _path(value: str | None) -> Path | None:
    return Path(value).expanduser() if value else None


if __name__ == "__main__":
    main()
