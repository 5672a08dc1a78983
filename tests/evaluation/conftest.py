"""Rows with clips, pictures and text, and the embedded model."""

import json

import pytest

from trl_perception.assets import from_pretrained
from trl_perception.data import make_synthetic_dataset


@pytest.fixture(scope="session")
def tiny():
    model, processor = from_pretrained("tiny")
    return model.eval(), processor


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Fourteen held-out rows, two a family: clips, pictures and text."""
    folder = tmp_path_factory.mktemp("synthetic")
    return make_synthetic_dataset(folder / "test", size=14, seed=5, medium="mixed", split="test")


@pytest.fixture(scope="session")
def rows_file(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
