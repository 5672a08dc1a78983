"""Rows before decoding: ids, order and digest."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from trl_perception.evaluation.rows import media_names, plan, prompt_text, read_rows
from trl_perception.evaluation.settings import EvaluationSettings


def asking(text, *kinds):
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]}]


def test_batches_hold_every_row_once_long_rows_first():
    rows = Dataset.from_list(
        [
            {"prompt": asking("short"), "duration": 0.0},
            {"prompt": asking("a clip", "video"), "duration": 4.0},
            {"prompt": asking("a picture", "image"), "duration": 0.0},
            {"prompt": asking("a longer clip", "video"), "duration": 60.0},
            {"prompt": asking("rather a long question"), "duration": 0.0},
        ]
    )
    # clips by duration, then pictures, then text by length
    assert plan(rows, 2).batches == [[3, 1], [2, 4], [0]]
    assert plan(rows, 5).batches == [[3, 1, 2, 4, 0]]


def test_ids_are_the_rows_own_and_distinct():
    row = {"prompt": "?", "problem_id": 7}
    assert plan(Dataset.from_list([row, {**row, "problem_id": 9}, row, row]), 1).ids == ["7", "9", "7#2", "7#3"]
    assert plan(Dataset.from_list([{"prompt": "?"}] * 2), 1).ids == ["0", "1"]


def test_the_digest_depends_on_rows_but_not_on_media_paths():
    row = {"id": "a", "prompt": asking("?", "video"), "videos": ["a.mp4"], "solution": "1", "options": ["x"]}
    digest = plan(Dataset.from_list([row]), 1).digest
    assert plan(Dataset.from_list([{**row, "videos": ["/elsewhere/a.mp4"]}]), 8).digest == digest
    for change in ({"solution": "2"}, {"prompt": asking("!", "video")}, {"id": "b"}, {"options": ["y"]}):
        assert plan(Dataset.from_list([{**row, **change}]), 1).digest != digest


def test_prompts_and_media_to_read():
    blocks = [{"type": "video", "video": "b.mp4", "text": None}, {"type": "text", "text": "Why?"}]
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": blocks}]
    assert prompt_text(messages) == "Look.\n<video>Why?"
    assert prompt_text("plain") == "plain"
    picture = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    row = {"prompt": messages, "image": picture, "videos": None}
    assert media_names(row) == ["image 6x4", "b.mp4"]
    assert media_names({"prompt": "plain", "videos": ["a.mp4"]}) == ["a.mp4"]


def test_what_cannot_be_evaluated_is_refused(rows_file, tmp_path):
    settings = {"model": "tiny", "data": str(rows_file), "output": str(tmp_path)}
    with pytest.raises(ValueError, match=r"has no column tpye, which by names\. Its columns are id, prompt"):
        read_rows(EvaluationSettings(**settings, by=["family,tpye"]))
    assert len(read_rows(EvaluationSettings(**settings, limit=3))) == 3
    assert len(read_rows(EvaluationSettings(**settings, limit=999))) == 14
