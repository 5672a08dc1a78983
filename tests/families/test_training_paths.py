"""A training step of every method along the fast paths against the plain ones: losses, weights of tokens, gradients."""

import logging

import pytest
import torch

from tests.families.test_forwards import OURS
from tests.families.training import UNBALANCED, mixed, trainer_of
from tests.trainers.reference import recorded
from trl_perception.trainers import TRAINERS

PACKED = ("qwen3_vl", "internvl", "smolvlm", "glm4v")
FAST = (("qwen3_vl", "appo"), ("internvl", "ktr"))
FROZEN_FAST = (("internvl", True),)


def trained(family, method, folder, rows, **config):
    settings = {"optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 1e-2, **config}
    trainer = trainer_of(family, method, folder, rows, cls=recorded(TRAINERS[method]), **settings)
    trainer.train()
    return trainer


def assert_equal_steps(fast, plain):
    """The same completions; losses, token weights and gradients to 1e-4; weights after the steps to what float32 rounds."""
    assert len(fast.seen) == len(plain.seen) == 2
    for ours, theirs in zip(fast.seen, plain.seen, strict=True):
        assert torch.equal(ours.inputs["completion_ids"], theirs.inputs["completion_ids"])
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4, abs=1e-4)
        assert ours.gradients.keys() == theirs.gradients.keys()
        flat = [torch.cat([seen.gradients[key].flatten() for key in theirs.gradients]) for seen in (ours, theirs)]
        assert (flat[0] - flat[1]).norm() < 1e-4 * flat[1].norm()
    for ours, theirs in zip(fast._buffered_inputs, plain._buffered_inputs, strict=True):
        assert ("token_weights" in ours) == ("token_weights" in theirs)
        if "token_weights" in ours:
            torch.testing.assert_close(ours["token_weights"], theirs["token_weights"], rtol=0, atol=1e-4)
    for name, value in plain.model.named_parameters():
        torch.testing.assert_close(fast.model.get_parameter(name), value, rtol=3e-7, atol=1e-6)
    assert any(
        (value - plain.seen[0].weights[name]).abs().max() > 1e-4 for name, value in plain.model.named_parameters()
    )


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, marks=() if (family, method) in FAST else pytest.mark.slow)
        for family in PACKED
        for method in TRAINERS
    ],
)
def test_packed_and_plain_steps_are_equal(family, method, clips, pictures, tmp_path):
    rows = mixed(clips, pictures)
    packed, plain = (trained(family, method, tmp_path / how, rows, group_forward=how) for how in ("on", "off"))
    assert packed._forwards.packs
    assert not plain._forwards.packs
    assert_equal_steps(packed, plain)


@pytest.mark.parametrize(
    ("family", "merger"),
    [
        pytest.param(family, merger, marks=() if (family, merger) in FROZEN_FAST else pytest.mark.slow)
        for family in OURS
        for merger in (False, True)
    ],
)
def test_features_of_a_frozen_tower_serve_every_forward_of_a_step(family, merger, clips, pictures, tmp_path):
    rows, frozen = mixed(clips, pictures), {"freeze_vision_tower": True, "freeze_merger": merger}
    # Video-KTR reads the media-masked and the shuffled view besides.
    fast, plain = (
        trained(family, "ktr", tmp_path / str(reuses), rows, reuse_vision_features=reuses, **frozen)
        for reuses in (True, False)
    )
    assert fast._reuses_features
    assert not plain._reuses_features
    assert_equal_steps(fast, plain)


@pytest.mark.slow
def test_experts_pack_where_their_load_is_not_balanced(clips, pictures, tmp_path, caplog):
    rows = mixed(clips, pictures)
    off = {"router_aux_loss_coef": 0.0}
    packed, plain = (
        trained("qwen3_vl_moe", "grpo", tmp_path / how, rows, group_forward=how, **off) for how in ("on", "off")
    )
    assert packed._forwards.packs
    assert_equal_steps(packed, plain)
    with caplog.at_level(logging.WARNING):
        balanced = trainer_of("qwen3_vl_moe", "grpo", tmp_path, rows)
    assert not balanced._forwards.packs
    assert "experts balance their load over all rows" in caplog.text
    with pytest.raises(
        ValueError, match=r"group_forward='on' is not possible: experts balance .*router_aux_loss_coef=0"
    ):
        trainer_of("qwen3_vl_moe", "grpo", tmp_path, rows, group_forward="on")


@pytest.mark.parametrize("family", UNBALANCED)
def test_a_balancing_loss_that_a_model_cannot_give_is_refused_at_the_start(family, pictures, tmp_path):
    rows = mixed([], pictures, {"image": "i"})
    with pytest.raises(ValueError, match=r"cannot return their router logits.*Set router_aux_loss_coef=0"):
        trainer_of(family, "grpo", tmp_path, rows, router_aux_loss_coef=0.001)
