"""Computes predictions from rows, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from zlib import crc32

import torch
from datasets import Dataset
from tqdm import tqdm

from ..media import MediaLoader, PreparedPrompt, PromptPreparer
from ..media.prompts import UnusableSampleError
from .figures import pass_rate
from .generate import complete, generation_config
from .model import load_model
from .rows import RowPlan, media_names, prompt_text
from .scoring import score
from .settings import EvaluationSettings
from .store import PredictionStore


def complete_batches(
    settings: EvaluationSettings,
    device: torch.device,
    rows: Dataset,
    planned: RowPlan,
    pending: Sequence[int],
    functions: Mapping,
    store: PredictionStore,
    *,
    bar: bool,
) -> None:
    """Complete, score and write the pending batches in sequence.

    Args: pending: numbers of batches, one or more; functions: see `reward_functions`; bar: show progress.
    """
    model, processor = load_model(settings, device)
    model.generation_config = generation_config(settings, model, processor)
    preparer = PromptPreparer(
        processor,
        loader=MediaLoader(read=settings.read_cached),
        video_settings=settings.video_settings,
        image_min_pixels=settings.image_min_pixels,
        image_max_pixels=settings.image_max_pixels,
        media_limits=settings.media_limits,
        max_prompt_length=settings.max_prompt_length,
        chat_template_kwargs=settings.chat_template_kwargs,
    )
    total = sum(len(planned.batches[number]) for number in pending)
    with tqdm(total=total, desc="evaluating", unit="row", disable=not bar) as progress:
        for number, of_rows, prompts in _prepared(rows, planned, pending, preparer, settings.on_bad_media):
            usable = [place for place, prompt in enumerate(prompts) if not prompt.left_out]
            chosen = [prompts[place] for place in usable]
            seed = crc32(f"{settings.seed} {number}".encode())  # independent of the process
            completions = complete(model, processor, chosen, samples=settings.samples, seed=seed) if chosen else []
            scores = score(functions, [of_rows[place] for place in usable], chosen, completions) if chosen else []
            found = dict(zip(usable, zip(completions, scores, strict=True), strict=True))
            records = []
            for place, (row_number, row, prompt) in enumerate(
                zip(planned.batches[number], of_rows, prompts, strict=True)
            ):
                record = _description(row_number, planned.ids[row_number], row, settings.by)
                records.append(record | _outcome(prompt, *found.get(place, ((), {})), settings.right_by, functions))
            store.write(number, records)
            progress.update(len(records))


def _prepared(
    rows: Dataset, planned: RowPlan, pending: Sequence[int], preparer: PromptPreparer, on_bad_media: str
) -> Iterator[tuple[int, list[dict], list[PreparedPrompt]]]:
    """Yield (batch number, its rows, its prompts); each batch is decoded while the previous one is completed."""

    def prepare(number: int) -> tuple[int, list[dict], list[PreparedPrompt]]:
        of_rows = [rows[place] for place in planned.batches[number]]
        try:
            return number, of_rows, preparer(of_rows, on_unusable=on_bad_media)
        except UnusableSampleError as error:
            raise UnusableSampleError(
                f"{error} Or set on_bad_media to 'skip': such rows are then left out, counted and listed."
            ) from error

    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        ahead = pool.submit(prepare, pending[0])
        for following in [*pending[1:], None]:
            ready = ahead.result()
            if following is not None:
                ahead = pool.submit(prepare, following)
            yield ready


def _description(number: int, name: str, row: Mapping[str, Any], by: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a row that are known before it is completed."""
    columns = {key: row.get(key) for key in ("problem_type", "solution", *by)}
    texts = {key: None if value is None else str(value) for key, value in columns.items()}
    return {"row": number, "id": name, "prompt": prompt_text(row["prompt"]), "media": media_names(row), **texts}


def _outcome(
    prompt: PreparedPrompt, completions: Sequence, scores: Mapping, right_by: str, functions: Mapping
) -> dict[str, Any]:
    """Return the result columns of a row; empty for a row that is left out."""
    return {
        "completions": [completion.text for completion in completions],
        "scores": {name: scores.get(name, []) for name in functions},
        "pass_rate": pass_rate(scores.get(right_by, [])),
        "tokens": [len(completion.ids) for completion in completions],
        "cut": [completion.cut for completion in completions],
        "left_out": prompt.left_out,
    }
