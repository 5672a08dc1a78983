"""The rows of an evaluation before decoding: names, order, and a digest."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from PIL import Image

from ..data.columns import undecoded_videos
from ..data.load import load_rows
from ..data.row_check import check_rows
from ..media import MEDIA_COLUMNS, MEDIA_KINDS, MediaSettings, media_blocks, media_columns
from ..media.errors import describe
from ..media.messages import ID_COLUMNS
from .settings import EvaluationSettings

logger = logging.getLogger(__name__)

IDENTITY_COLUMNS = (*ID_COLUMNS, "prompt", "problem_type", "options", "solution")


@dataclass(frozen=True)
class RowPlan:
    """The batches of an evaluation.

    Args:
        ids: one per row, all different.
        batches: row numbers, each in one batch, long rows first: running out of memory happens at the start.
        digest: identifies these rows.
    """

    ids: list[str]
    batches: list[list[int]]
    digest: str


def read_rows(settings: EvaluationSettings) -> Dataset:
    """Load the rows to evaluate, with undecoded videos, and check each once (see [`check_rows`]).

    Errors: ValueError for a split without rows, or without a column that `by` names, and for rows that cannot be used.
    """
    rows = load_rows(
        settings.data,
        settings.split,
        config=settings.data_config,
        synthetic=settings.synthetic,
        prompt_template=settings.prompt_template,
    )
    rows = undecoded_videos(rows)
    if settings.limit is not None:
        rows = rows.select(range(min(settings.limit, len(rows))))
    if not len(rows):
        raise ValueError(f"{settings.data}, split {settings.split!r}, has no rows. Set data or split.")
    missing = [name for name in settings.by if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{settings.data} has no column {', '.join(missing)}, which by names. Its columns are "
            f"{', '.join(rows.column_names)}: set by to some of them."
        )
    media = MediaSettings(
        settings.video_settings, settings.image_min_pixels, settings.image_max_pixels, settings.media_limits
    )
    skips = settings.on_bad_media == "skip"
    if settings.check_rows and (
        table := check_rows(rows, title="evaluation data", skip_missing=skips, settings=media.request)
    ):
        logger.warning(table)
    return rows


def plan(rows: Dataset, batch_size: int) -> RowPlan:
    """Make batches of rows with similar length. They depend only on rows and batch size, so that any number of
    processes, and a resumed run, complete the same rows together: the other rows of a batch change the last bits of a
        sum.
    """
    ids, lengths, digest = [], [], hashlib.sha256()
    for number, row in enumerate(rows.select_columns([c for c in rows.column_names if c not in MEDIA_COLUMNS])):
        ids.append(next((str(row[key]) for key in ID_COLUMNS if row.get(key) is not None), str(number)))
        lengths.append(_length(row))
        known = {key: row.get(key) for key in IDENTITY_COLUMNS}
        digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    order = sorted(range(len(ids)), key=lambda number: lengths[number], reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return RowPlan(list(_distinct(ids)), batches, digest.hexdigest()[:16])


def prompt_text(prompt: Any) -> str:
    """Return the prompt as text, with `<video>` and `<image>` for media and each message on its own line."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join("".join(_texts(message.get("content"))) for message in prompt if message is not None)


def media_names(row: Mapping[str, Any]) -> list[str]:
    """Return short names of the row's media, paths and URLs unchanged: of columns first, then of message blocks."""
    media = [medium for of_kind in media_columns(row).values() for medium in of_kind]
    if not isinstance(row["prompt"], str):
        messages = [message for message in row["prompt"] if message and isinstance(message.get("content"), list)]
        media += [block[block["type"]] for block in media_blocks(messages) if block.get(block["type"]) is not None]
    return [_name(medium) for medium in media]


def _name(medium: Any) -> str:
    return f"image {medium.width}x{medium.height}" if isinstance(medium, Image.Image) else describe(medium)


def _length(row: Mapping[str, Any]) -> tuple:
    """Return a sort key that approximates prompt length, without decoding."""
    text = prompt_text(row["prompt"])
    videos, images = (text.count(f"<{kind}>") for kind in reversed(MEDIA_KINDS))
    duration = row.get("duration")
    return videos, duration if isinstance(duration, int | float) else 0.0, images, len(text)


def _texts(content: Any) -> Iterable[str]:
    if content is None or isinstance(content, str):
        yield content or ""
        return
    for block in content:
        kind = block.get("type")
        yield f"<{kind}>" if kind in MEDIA_KINDS else block.get("text") or ""


def _distinct(ids: Sequence[str]) -> Iterable[str]:
    """Make ids unique by appending the number of the occurrence: "7", "7#2", "7#3"."""
    seen: Counter[str] = Counter()
    for name in ids:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"
