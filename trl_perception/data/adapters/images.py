"""Image reasoning: ViRL39K and Geometry3K, both mathematics in parquet with tags at the places of the images."""

import re
from typing import Any

from .adapter import Adapter
from .record import Record
from .rows import make_row
from .source import Source, read_parquet

_BOXED = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)


def virl39k_row(record: Record, source: Source) -> dict[str, Any]:
    """A row of ViRL39K (arXiv:2504.08837): 39Krelease.parquet with `qid`, `question` (with `<image>`), `answer` (boxed),
    `image` (paths from the folder, images.zip unpacked), `category`, `source` and pass rates of two models.

    Its own pass rates filter by difficulty:
    `--pass-rates 39Krelease.parquet --pass-rate-columns qid PassRate_7BBase --max-pass-rate 0.9`.
    Errors: RecordError.
    """
    return make_row(
        record,
        name=record.text("qid"),
        question=record.text("question"),
        problem_type="mathematics",
        solution=unboxed(record.text("answer")),
        images=[source.medium(path) for path in record.texts("image")],
    )


def geometry3k_row(record: Record, source: Source) -> dict[str, Any]:
    """A row of Geometry3K as hiyouga/geometry3k publishes it: parquet with `images` (encoded bytes), `problem` (with
    `<image>`) and `answer`. The records have no id; their index in the split is used. Errors: RecordError.
    """
    images = record.field("images")
    if not isinstance(images, list) or not all(
        isinstance(i, dict) and isinstance(i.get("bytes"), bytes) for i in images
    ):
        raise record.wrong("field 'images' must be a list of images with their bytes.")
    return make_row(
        record,
        name=f"geometry3k-{source.split}-{record.number - 1:05d}",
        question=record.text("problem"),
        problem_type="mathematics",
        solution=record.text("answer"),
        images=[image["bytes"] for image in images],
    )


def unboxed(answer: str) -> str:
    r"""Return the content of a \boxed{...} that is the whole answer; any other answer is unchanged."""
    boxed = _BOXED.fullmatch(answer.strip().strip("$").strip())
    return boxed[1].strip() if boxed else answer


VIRL39K = Adapter(
    title="ViRL39K",
    layout="39Krelease.parquet, images/",
    files=lambda source: [source.file("39Krelease.parquet")],
    read=read_parquet,
    row=virl39k_row,
)
GEOMETRY3K = Adapter(
    title="Geometry3K",
    layout="data/SPLIT-*.parquet with the images inside; they are written to the output folder",
    files=lambda source: [source.file(f"data/{source.split}-*.parquet", f"{source.split}-*.parquet")],
    read=read_parquet,
    row=geometry3k_row,
    splits=("train", "validation", "test"),
)
