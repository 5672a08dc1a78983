"""What a trainer refuses before it samples: rows without prompts, and videos that would be lost on the way."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..media import has_visual_grids, media_columns


def require_prompts(dataset: Any) -> None:
    """Refuse a dataset without a prompt column at once instead of at its first batch.

    Errors: ValueError naming the columns found.
    """
    if isinstance(dataset, dict):
        for part in dataset.values():
            require_prompts(part)
        return
    columns = getattr(dataset, "column_names", None)
    if columns and "prompt" not in columns:
        raise ValueError(
            f"The dataset has columns {sorted(columns)} and no 'prompt'. Rename the column that holds the messages to "
            "'prompt'."
        )


def refuse_videos(rows: Sequence[Mapping[str, Any]], processor: Any) -> None:
    """Where TRL prepares the prompts itself, a video would be lost between rollout and update.

    Errors: ValueError for the first row with a video, naming what stands in its way.
    """
    for row in rows:
        prompt = row.get("prompt")
        blocks = [
            block
            for message in (prompt if isinstance(prompt, list) else [])
            if isinstance(message.get("content"), list)
            for block in message["content"]
        ]
        if media_columns(row)["video"] or any(block.get("type") == "video" for block in blocks):
            obstacle = (
                "tools, environments or a rollout_func"
                if has_visual_grids(processor)
                else f"{type(processor).__name__}, which does not describe videos as grids"
            )
            raise ValueError(
                f"The prompt has a video, and videos are not supported with {obstacle}. Use a Qwen-VL processor without "
                "tools, environments and rollout_func, or leave videos out."
            )
