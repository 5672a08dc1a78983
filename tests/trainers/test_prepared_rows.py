"""Rows that `prepare` writes from each published layout train."""

import math

import pytest

from tests.helpers import history
from tests.layouts import LAYOUTS
from trl_perception.data.adapters import Source
from trl_perception.data.load import load_rows
from trl_perception.data.preparation import PrepareOptions, prepare


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_steps_on_each_data_set(make_trainer, tmp_path, clips, pictures, name):
    writer, split = LAYOUTS[name]
    (tmp_path / "source").mkdir()
    source = Source(writer(tmp_path / "source", clips, pictures), split)
    prepare(name, source, tmp_path / "rows", PrepareOptions(template="think_answer"), progress=False)
    rows = load_rows(str(tmp_path / "rows"), split)
    trainer = make_trainer(rows, max_steps=2, temperature=3.0, video_max_frames=4, image_max_pixels=56 * 56)
    trainer.train()
    losses, norms, skipped = history(trainer, "loss", "grad_norm", "media/skipped")
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert max(norms) > 0
    assert skipped == [0.0, 0.0]
