"""Checks of a processor's chat template and vocabulary when a run starts: what it writes is said in a line of the log each."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset

from ..media import PromptPreparer
from ..rewards.boxes import BOX_GROUNDING, box_of
from .row_check import stored_rows
from .templates import TEMPLATES

logger = get_logger(__name__)
TAG = re.compile(r"</?(\w+)>")


def check_processor(preparer: PromptPreparer, model_type: str, dataset: Any, say: Callable[[str], None]) -> None:
    """Say what the processor makes of clips and tags, and what boxes are; warn where a run may need another setting.

    Args:
        preparer: of the run. model_type: of its model.
        dataset: its rows, of which the first one shows the tags, and the first one with a box its numbers.
        say: prints a line.
    """
    row = boxed = {}
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        row = next(stored_rows(dataset), {})
        types = dataset["problem_type"] if "problem_type" in dataset.column_names else ()
        asks = [index for index, problem_type in enumerate(types) if problem_type in BOX_GROUNDING]
        boxed = next(stored_rows(dataset.select(asks[:1])), {})
    findings = (
        clip_finding(preparer),
        tag_findings(preparer, row.get("prompt")),
        box_finding(preparer, model_type, boxed),
    )
    for notable, line in chain(*findings):
        (logger.warning if notable else say)(line)


def clip_finding(preparer: PromptPreparer) -> Iterator[tuple[bool, str]]:
    """Yield whether the chat template and the processor both put marks around a clip, found in the ids of a clip of 4 frames."""
    processor = preparer.processor
    content = [{"type": "video", "video": torch.zeros(4, 3, 56, 56, dtype=torch.uint8), "sample_fps": 2.0}]
    prompt = [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]
    plain = PromptPreparer(processor, chat_template_kwargs=preparer.chat_template_kwargs)
    (clip,) = plain([{"prompt": prompt}], on_unusable="skip")
    if clip.left_out:
        yield False, f"The chat template of {type(processor).__name__} does not show a clip: {clip.left_out}."
        return
    types = clip.visual.token_types.tolist()
    starts = [place + 1 for place, (before, here) in enumerate(pairwise(types)) if here and not before]
    marks = {clip.input_ids[place - 1] for place in starts}
    if len(starts) < 2 or len(marks) > 1:
        return
    mark, cells = marks.pop(), len(starts)
    name, processor_name = processor.tokenizer.convert_ids_to_tokens(mark), type(processor).__name__
    more = clip.input_ids.count(mark) - cells
    if more:
        yield (
            True,
            f"A clip is wrapped twice: {processor_name} writes {name} before each of {cells} cells, and the chat template writes "
            f"{more} more around the clip. Processors of transformers 4.57 and before replaced the template's pair, so that a model "
            "trained with them, or served by an engine that does so, sees prompts without it. To train without it, pass a "
            "chat_template that writes the placeholder of a video alone.",
        )
    else:
        yield (
            False,
            f"{processor_name} writes {name} before each of {cells} cells of a clip, and the chat template none besides.",
        )


def tag_findings(preparer: PromptPreparer, prompt: Any) -> Iterator[tuple[bool, str]]:
    """Yield, for each tag that the prompt asks for or the chat template opens, how the tokenizer and the template treat it."""
    processor, tokenizer = preparer.processor, preparer.processor.tokenizer
    asked = {tag for text in _texts(prompt) for tag in TAG.findall(text) if f"<{tag}>" in text and f"</{tag}>" in text}
    opened = _generation_prompt(preparer)
    known = {tag for template in TEMPLATES.values() for tag in TAG.findall(template.instruction)}
    for tag in sorted(asked | {tag for tag in known if f"<{tag}>" in opened}):
        counts = opened.count(f"<{tag}>"), opened.count(f"</{tag}>")
        if counts[0]:
            what = "opens" if counts[0] > counts[1] else "opens and closes"
            yield (
                True,
                f"The chat template of {type(processor).__name__} {what} <{tag}> before the completion, which then has no <{tag}> of "
                "its own: a format reward that wants it gives 0. Use a prompt template with other tags, or chat_template_kwargs "
                "with which the template does not write it.",
            )
        if tag not in asked:
            continue
        ids = tokenizer(f"<{tag}>", add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and f"<{tag}>" in tokenizer.get_added_vocab():
            yield (
                False,
                f"<{tag}>, which the prompts ask for, is one added token (id {ids[0]}) of this tokenizer. A model that was not trained "
                "to write it seldom samples it: if format rewards stay near 0, use a prompt template with tags of text (reason_answer, "
                "reason_boxed, video_r1_reason).",
            )
        else:
            yield False, f"<{tag}>, which the prompts ask for, is text: {len(ids)} tokens of this tokenizer."


def box_finding(preparer: PromptPreparer, model_type: str, row: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield what the numbers of the model's boxes are, and whether the box that is the solution of a row may be one of these."""
    box = box_of(row.get("solution")) if row else None
    if box is None:
        return
    what = preparer.family.boxes.get(model_type, "")
    said = f"Rewards compare boxes as numbers. A solution of this data is {list(box)}, and {model_type} writes {what or 'boxes'}"
    if not what:
        yield False, f"{said} in numbers that are not known here: write solutions as the model was trained to."
    elif max(box) <= 1 or (what.startswith("0 to 1000") and max(box) > 1000):
        yield True, f"{said}: the two differ. Convert the solutions, or name their numbers in the question."
    else:
        yield False, f"{said}."


def _generation_prompt(preparer: PromptPreparer) -> str:
    """Return what the chat template writes after the last turn."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    options = {"tokenize": False, **preparer.chat_template_kwargs}
    shown, whole = (
        preparer.processor.apply_chat_template(messages, add_generation_prompt=add, **options) for add in (False, True)
    )
    return whole.removeprefix(shown)


def _texts(prompt: Any) -> Iterator[str]:
    """Yield the texts of a prompt: a string, or messages with strings or blocks."""
    if isinstance(prompt, str):
        yield prompt
        return
    for message in prompt or ():
        content = message.get("content") or ()
        if isinstance(content, str):
            yield content
        else:
            yield from (block["text"] for block in content if block.get("text"))
