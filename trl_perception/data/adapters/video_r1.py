"""Video-R1-260k and Video-R1-COT-165k, as published with arXiv:2503.21776.

A JSON list of `problem_id`, `problem`, `data_type` ("video" or "image"), `problem_type`, `options` (["A. ...", ...]),
`process` (the reasoning in think tags; empty in the 260k file), `solution` ("<answer>A</answer>"), `path` from the folder
of the JSON file, `data_source`.
"""

from typing import Any

from .adapter import Adapter
from .record import Record
from .rows import make_row
from .source import Source, read_json

# Its types -> ours. Video-R1 scores free-form answers by ROUGE, which is "free text" here; "free-form" is an exact match.
PROBLEM_TYPES = {
    "multiple choice": "multiple choice",
    "numerical": "numerical",
    "OCR": "OCR",
    "free-form": "free text",
    "regression": "regression",
}


def video_r1_row(record: Record, source: Source) -> dict[str, Any]:
    """Return a row for reinforcement learning. Errors: RecordError."""
    problem_type = PROBLEM_TYPES[record.one_of("problem_type", tuple(PROBLEM_TYPES))]
    kind = record.one_of("data_type", ("video", "image"))
    return make_row(
        record,
        name=record.text("problem_id"),
        question=record.text("problem"),
        problem_type=problem_type,
        solution=record.text("solution"),
        options=record.texts("options", optional=problem_type != "multiple choice"),
        **{f"{kind}s": [source.medium(record.text("path"))]},
    )


def warm_up_row(record: Record, source: Source) -> dict[str, Any]:
    """Return the same row with a `completion` to imitate: the reasoning, then the solution, both in their tags."""
    process, solution = record.text("process"), record.text("solution")
    if not (process.startswith("<think>") and process.endswith("</think>")):
        raise record.wrong(f"field 'process' must be <think>...</think>, found {process[:60]!r}.")
    if not (solution.startswith("<answer>") and solution.endswith("</answer>")):
        raise record.wrong(f"field 'solution' must be <answer>...</answer>, found {solution[:60]!r}.")
    content = [{"type": "text", "text": f"{process}\n{solution}"}]
    return {**video_r1_row(record, source), "completion": [{"role": "assistant", "content": content}]}


VIDEO_R1 = Adapter(
    title="Video-R1-260k",
    layout="Video-R1-260k.json, media beside it",
    files=lambda source: [source.file("Video-R1-260k.json")],
    read=read_json,
    row=video_r1_row,
)
VIDEO_R1_COT = Adapter(
    title="Video-R1-COT-165k",
    layout="Video-R1-COT-165k.json, media beside it; rows have a completion for supervised warm-up",
    files=lambda source: [source.file("Video-R1-COT-165k.json")],
    read=read_json,
    row=warm_up_row,
    warm_up=True,
)
