"""Checks of training data: rows without prompts, too few rows, media that would be lost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import ProcessorMixin

from ..families import family_of_processor, supported
from ..media import MediaSettings, media_columns
from ..rewards import solution_check
from .row_check import check_rows, stored_rows

logger = get_logger(__name__)

# Arguments of a reward function that TRL passes beside the columns.
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def require_prompts(dataset: Any) -> None:
    """Reject a dataset without a prompt column, or with a column that would shadow an argument of reward functions.

    Errors: ValueError naming the columns found.
    """
    if isinstance(dataset, dict):
        for part in dataset.values():
            require_prompts(part)
        return
    columns = getattr(dataset, "column_names", None)
    if reserved := sorted({*RESERVED} & {*(columns or ())}):
        raise ValueError(
            f"The dataset has a column {reserved[0]!r}, which is an argument that TRL passes to every reward function: its values "
            "would be lost. Rename the column."
        )
    if columns and "prompt" not in columns:
        raise ValueError(
            f"The dataset has columns {sorted(columns)} and no 'prompt'. Rename the column that holds the messages to "
            "'prompt', or make rows of questions and answers with `trl-perception prepare`."
        )


def check_datasets(args: Any, reward_funcs: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Check every row of map-style data once (see [`check_rows`]); warn of rows that `on_bad_media="skip"` leaves out.

    Errors: ValueError with a table of all problems.
    """
    media = MediaSettings(args.video_settings, args.image_min_pixels, args.image_max_pixels, args.media_limits)
    rewards = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for title, rows in _stored(train_dataset, eval_dataset):
        table = check_rows(
            rows,
            title=title,
            skip_missing=args.on_bad_media == "skip",
            settings=media.request,
            solutions=solution_check(rewards),
        )
        if table:
            logger.warning(table)


def check_media_kept(processor: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Check every row of map-style data, of which TRL prepares the prompts, for media that would be lost. Errors: ValueError."""
    for _, rows in _stored(train_dataset, eval_dataset):
        refuse_media_lost(stored_rows(rows), processor)


def _stored(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Dataset]]:
    """Yield titles and map-style data: no streams, and no rows that are generated on access."""
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    data = {"training data": train_dataset}
    data |= {f"evaluation data {name}".strip(): rows for name, rows in evaluated.items()}
    for title, rows in data.items():
        if isinstance(rows, Dataset) and rows.format["type"] != "custom":
            yield title, rows


def left_out_of_an_epoch(rows: int, prompts: int, *, shuffled: bool) -> str | None:
    """Return a warning that TRL's sampler leaves out rows that do not fill a rollout, or None if there are none.

    Args:
        rows: of the data set. prompts: of a rollout, over all processes. shuffled: whether each epoch has its own order.
    Errors: ValueError if the rows do not fill one rollout.
    """
    change = "per_device_train_batch_size or steps_per_generation"
    if rows < prompts:
        raise ValueError(
            f"The training data have {rows} prompts and a rollout takes {prompts}: nothing would be trained. Lower {change}, "
            "raise num_generations, or give more rows."
        )
    if not (rest := rows % prompts):
        return None
    which = "others each time" if shuffled else "always the last ones, since shuffle_dataset is False"
    return (
        f"An epoch leaves out {rest} of {rows:,} prompts ({which}): a rollout takes {prompts} of them. Change {change} so that "
        "rollouts come out even, if that matters."
    )


def refuse_media_lost(rows: Iterable[Mapping[str, Any]], processor: Any) -> None:
    """Reject media that would be lost between rollout and update: videos if TRL prepares the prompts itself, and images
    too if there is only a tokenizer.

    Errors: ValueError for the first row with such a medium, naming the cause.
    """
    for row in rows:
        prompt = row.get("prompt")
        blocks = [
            block
            for message in (prompt if isinstance(prompt, list) else [])
            if isinstance(message.get("content"), list)
            for block in message["content"]
        ]
        media = {
            kind: columns or any(block.get("type") == kind for block in blocks)
            for kind, columns in media_columns(row).items()
        }
        if media["image"] and not isinstance(processor, ProcessorMixin):
            raise ValueError(
                f"The prompt has an image, and the processing_class is a {type(processor).__name__}, which reads text alone. "
                "Pass the model's processor (AutoProcessor.from_pretrained), or leave images out."
            )
        if media["video"]:
            obstacle = (
                "tools, environments or a rollout_func"
                if family_of_processor(processor) is not None
                else type(processor).__name__
            )
            raise ValueError(
                f"The prompt has a video, and videos are not supported with {obstacle}. Use a model of one of these families, "
                f"without tools, environments and rollout_func: {supported()}. Or leave videos out."
            )


def refuse_padded(prompt_ids: Sequence[Sequence[int]], processor: Any) -> None:
    """Reject token ids of a batch of prompts that were padded, which TRL takes for prompt.

    A template may begin or end with the pad token itself, in every prompt alike. Errors: ValueError.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    is_text = [[int(token) != tokenizer.pad_token_id for token in ids] for ids in prompt_ids]
    pads = [(row.index(True), row[::-1].index(True)) for row in is_text if any(row)]
    if len(set(pads)) > 1:
        raise ValueError(
            f"{type(processor).__name__} pads the prompts of a batch to one length, and TRL would train with up to "
            f"{max(map(sum, pads))} pad tokens as part of a prompt. Set chat_template_kwargs={{'padding': False}} if the processor "
            "takes it, or sample one prompt at a time (generation_batch_size = num_generations), or give prompts of one length."
        )
