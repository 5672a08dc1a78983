"""SEED-Bench-R1 (arXiv:2503.24376): what to do next, from a video of the task so far and an image of the present state.

One JSON object a line with `sample_id`, `question`, `choice_a` to `choice_d`, `golden_choice_idx` ("A" to "D"),
`video_basename`, `current_observation_basename`, `video_source`, in annotations/training_6k.jsonl and
annotations/validation_L1.jsonl to _L3. Media are looked for in videos/<video_source>/ and images/<video_source>/, then
in videos/ and images/: the published folders were not at hand, so name another root with --media where they differ.
"""

from typing import Any

from .adapter import Adapter
from .record import Record
from .rows import make_row
from .source import Source, read_jsonl

STEMS = {"train": "training_6k"}  # any other split is the name of its file


def seed_bench_row(record: Record, source: Source) -> dict[str, Any]:
    """Return a multiple-choice row with one video and one image. Errors: RecordError."""
    video, image = record.text("video_basename"), record.text("current_observation_basename")
    origin = record.text("video_source")
    return make_row(
        record,
        name=record.text("sample_id"),
        question=record.text("question"),
        problem_type="multiple choice",
        solution=record.one_of("golden_choice_idx", "ABCD"),
        options=[f"{letter}. {record.text(f'choice_{letter.lower()}')}" for letter in "ABCD"],
        videos=[source.medium(f"videos/{origin}/{video}", f"videos/{video}")],
        images=[source.medium(f"images/{origin}/{image}", f"images/{image}")],
    )


SEED_BENCH_R1 = Adapter(
    title="SEED-Bench-R1",
    layout="annotations/training_6k.jsonl or annotations/SPLIT.jsonl, videos/, images/",
    files=lambda source: [
        source.file(
            f"annotations/{STEMS.get(source.split, source.split)}.jsonl",
            f"{STEMS.get(source.split, source.split)}.jsonl",
        )
    ],
    read=read_jsonl,
    row=seed_bench_row,
    splits=("train", "validation_L1", "validation_L2", "validation_L3"),
)
