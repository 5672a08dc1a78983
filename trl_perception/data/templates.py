"""Prompt templates: the text after a question, selected by name in a recipe."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

from .. import __version__
from ..media.messages import is_readable

THINK_ANSWER = "Reason inside <think> and </think> first, then give your final answer inside <answer> and </answer>."
ANSWER_ONLY = "Give your final answer alone, inside <answer> and </answer>, without any reasoning."
BOXED = "Reason inside <think> and </think> first, then give your final answer in \\boxed{}."
DIALOGUE = (
    "Think it through as a person would, talking to yourself, doubting and checking your steps. Write this reasoning "
    "inside <think> and </think>, then your final answer inside <answer> and </answer>."
)
BY_TYPE = MappingProxyType(
    {
        "multiple choice": "Between the answer tags, write only the letter of one option, such as A.",
        "numerical": "Between the answer tags, write only a number, such as 42 or 3.14.",
        "regression": "Between the answer tags, write only a number, such as 42 or 3.14.",
        "OCR": "Between the answer tags, write the text exactly as it is shown.",
        "free-form": "Between the answer tags, write your answer as text.",
        "free text": "Between the answer tags, write your answer as text.",
        "mathematics": "Between the answer tags, write only the value or expression asked for.",
        "temporal grounding": "Between the answer tags, write only times in seconds, such as 2.0 to 3.5.",
        "box grounding": "Between the answer tags, write only the box, such as [10, 20, 110, 220].",
        "spatial grounding": "Between the answer tags, write only the box, such as [10, 20, 110, 220].",
    }
)


@dataclass(frozen=True)
class PromptTemplate:
    """The text after a question: an instruction and, with `by_type`, one more sentence for the row's problem type."""

    instruction: str
    by_type: Mapping[str, str] = field(default_factory=dict)

    def suffix(self, problem_type: str | None) -> str:
        """Return the text to add. Errors: ValueError for a problem type without a sentence in the template."""
        if not self.by_type:
            return self.instruction
        if problem_type not in self.by_type:
            raise ValueError(
                f"the prompt template has no sentence for problem_type {problem_type!r}; known: "
                f"{', '.join(self.by_type)}. Name the type in the rows, or choose a template without type sentences."
            )
        return f"{self.instruction} {self.by_type[problem_type]}"


def _in_reason_tags(instruction: str) -> str:
    return instruction.replace("think>", "reason>")


TEMPLATES = {
    "none": PromptTemplate(""),
    "think_answer": PromptTemplate(THINK_ANSWER),
    "answer_only": PromptTemplate(ANSWER_ONLY),
    "boxed": PromptTemplate(BOXED),
    "video_r1": PromptTemplate(DIALOGUE, BY_TYPE),
    "video_r1_answer_only": PromptTemplate(ANSWER_ONLY, BY_TYPE),
    "reason_answer": PromptTemplate(_in_reason_tags(THINK_ANSWER)),
    "reason_boxed": PromptTemplate(_in_reason_tags(BOXED)),
    "video_r1_reason": PromptTemplate(_in_reason_tags(DIALOGUE), BY_TYPE),
}
"""think_answer: DeepSeek-R1's tags, as APPO and Video-KTR use them. answer_only: RAL-zero. boxed: PGPO, on mathematics.
video_r1: inner dialogue, tags and a sentence for each problem type, as in arXiv:2503.21776; its answer_only twin is
RAL-zero on Video-R1's rows. Differs: the sentences are ours, tags and what each type asks for are the papers'.
reason_answer, reason_boxed, video_r1_reason: the same with `<reason>` for `<think>`, for models whose vocabulary has
`<think>` as a token that they do not write in a completion (Qwen3-VL Instruct, Qwen3.5 without thinking)."""


def get_template(name: str) -> PromptTemplate:
    """Return a template by name. Errors: ValueError with the nearest name."""
    if name not in TEMPLATES:
        nearest = difflib.get_close_matches(name, TEMPLATES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown prompt template {name!r}; did you mean {nearest!r}? Known: {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def templated_prompt(prompt: Any, name: str, problem_type: str | None = None) -> Any:
    """Add the template's text on a new line after the last text of the prompt's last user turn.

    Args: prompt: messages whose content is text or a list of blocks, or a plain string. It is not modified.
    Errors: ValueError for an unknown template, or a conversation without a user turn.
    """
    suffix = get_template(name).suffix(problem_type)
    if not suffix:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt}\n{suffix}"
    turns = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    if not turns:
        raise ValueError(f"prompt template {name!r} needs a user turn; the prompt has none.")
    messages = list(prompt)
    message = messages[turns[-1]]
    messages[turns[-1]] = {**message, "content": _followed_by(message["content"], suffix)}
    return messages


def apply_template(rows: "Dataset", name: str) -> "Dataset":
    """Apply a template to the prompts of rows; rows that were prepared with the same template are unchanged.

    Reads `prompt`, `problem_type` (if the template needs it) and `prompt_template`, the column in which
    `trl-perception prepare --template` stores the template of a prompt.

    Errors: ValueError for an unknown name, or rows with another template.
    """
    get_template(name)
    if name == "none":
        return rows
    carried = set(rows.unique("prompt_template")) - {None, "none"} if "prompt_template" in rows.features else set()
    if carried == {name}:
        return rows
    if carried:
        raise ValueError(
            f"The rows were prepared with the prompt template {', '.join(map(repr, sorted(carried)))}, and {name!r} "
            "would follow it. Set prompt_template: none, or prepare the rows again without --template."
        )
    from datasets import Value  # a slow import, not needed to check template names

    features = rows.features.copy()
    features["prompt_template"] = Value("string")

    def extend(row: dict, number: int, version: str) -> dict:
        prompt = row["prompt"]
        if is_readable(prompt):  # other prompts are rejected by the check of all rows before training
            try:
                prompt = templated_prompt(prompt, name, row.get("problem_type"))
            except ValueError as error:
                raise ValueError(f"row {number + 1} of the data: {error}") from error
        return {"prompt": prompt, "prompt_template": name}

    # `version` is part of the cache key of `datasets`: texts of another version of this package are not reused.
    given = {"version": __version__}
    return rows.map(extend, with_indices=True, features=features, fn_kwargs=given, desc=f"prompt template {name}")


def _followed_by(content: str | Sequence[Mapping], suffix: str) -> str | list[dict]:
    if isinstance(content, str):
        return f"{content}\n{suffix}"
    blocks = [dict(block) for block in content]
    if blocks and blocks[-1].get("text") is not None:
        blocks[-1]["text"] = f"{blocks[-1]['text']}\n{suffix}"
        return blocks
    return [*blocks, {"type": "text", "text": suffix}]
