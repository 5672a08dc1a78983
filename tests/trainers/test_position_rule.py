"""Every model of a run numbers positions by the run's rule, in rollout and updates, on every path."""

import pytest
import torch

from tests.conftest import write_clip
from tests.helpers import message
from tests.positions import layout_of, slow_positions
from tests.trainers.reference import shaken
from tests.trainers.test_forward import Recorder
from trl_perception import AttnDistillTrainer
from trl_perception.assets import model_path
from trl_perception.modeling import forward_kwargs, position_rule_of
from trl_perception.trainers import AttnDistillConfig


@pytest.fixture
def long_clip(tmp_path):
    """6 cells, 4 positions apart: its last cell is beyond the text that follows it by transformers' rule."""
    clip = write_clip(tmp_path / "long.mp4", seed=0, frames=24)
    return [{"prompt": message("Same?", "video"), "videos": [clip], "images": []}]


def expected(row, ids, visual, rule):
    """log p of a completion of 8 tokens, and the likeliest token at each of its places, by a model without a rule, at positions from the loops."""
    model = shaken(model_path("tiny")).eval()
    positions, _ = slow_positions(layout_of(visual, 8), rule)
    media = forward_kwargs(model, [visual], row.size(0) - 8, row.size(0))
    with torch.no_grad():
        logits = model(input_ids=row[None], position_ids=torch.tensor(positions).T[:, None], **media).logits
    logits = logits[0, -9:-1]
    sampled = logits.clone()
    sampled[:, [model.config.image_token_id, model.config.video_token_id]] = -torch.inf  # belong to prompts
    return torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0], sampled.argmax(-1)


@pytest.mark.parametrize("packed", ["on", "off"])
@pytest.mark.parametrize("rule", ["released", "transformers"])
def test_sampled_and_forwarded_at_the_same_positions(long_clip, make_trainer, rule, packed):
    trainer = make_trainer(
        long_clip,
        cls=Recorder,
        model=shaken(model_path("tiny")),
        position_rule=rule,
        group_forward=packed,
        generation_kwargs={"do_sample": False, "eos_token_id": [0]},
        shared_prefill=packed == "on",
        max_steps=1,
        learning_rate=0.0,
    )
    trainer.train()
    ((inputs, _),) = trainer.seen
    rows = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    logps = trainer.logps(inputs)
    for row, ids, of_row, visual in zip(rows, inputs["completion_ids"], logps, inputs["visual_inputs"], strict=True):
        assert len(ids) == 8
        logps_there, likeliest = expected(row, ids, visual, rule)
        assert ids.tolist() == likeliest.tolist()
        torch.testing.assert_close(of_row, logps_there, atol=1e-5, rtol=1e-5)
        elsewhere, _ = expected(row, ids, visual, "released" if rule == "transformers" else "transformers")
        assert (logps_there - elsewhere).abs().max() > 0.01


@pytest.mark.parametrize("rule", ["released", "transformers"])
def test_the_reference_and_the_teacher_follow_the_students_rule(long_clip, make_trainer, rule):
    other = shaken(model_path("tiny"), seed=1)
    trainer = make_trainer(
        long_clip, cls=AttnDistillTrainer, beta=0.1, position_rule=rule, extra={"teacher_model": other}
    )
    assert [position_rule_of(model) for model in (trainer.model, trainer.ref_model, trainer.teacher)] == [rule] * 3


def test_an_unknown_rule_is_refused_with_the_configuration():
    with pytest.raises(ValueError, match="position_rule is 'old'; 'released' or 'transformers' wanted"):
        AttnDistillConfig("out", position_rule="old", use_cpu=True, bf16=False)
