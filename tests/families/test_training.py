"""Every family and every method: two steps on videos, images and text in one batch, in TRL's trainer."""

import math

import pytest
import torch

from tests.families.test_forwards import OURS
from tests.families.training import mixed, trainer_of
from tests.helpers import history
from trl_perception.trainers import TRAINERS

FAST = (
    ("qwen3_vl", "appo"),
    ("internvl", "ktr"),
    ("internvl", "attn_distill"),
    ("qwen3_5", "pgpo"),
)
TABLE = [
    pytest.param(family, method, marks=() if (family, method) in FAST else pytest.mark.slow)
    for family in OURS
    for method in TRAINERS
]


def within(low: float, high: float):
    """Whether every logged value lies between the two, which it may not equal."""
    return lambda values: all(low < value < high for value in values)


def sometimes(low: float):
    return lambda values: max(values) > low


# What each method logs where its signals are there. With media in four of five prompts no share is 0 or 1.
LOGGED = {
    "grpo": {},
    "appo": {
        "appo/weight_max": sometimes(1.0),
        "appo/frames_selected": sometimes(0.9),
        "appo/perception_frac": within(0, 1),
        "appo/divergence_mean": within(1e-4, math.log(2)),
    },
    "pgpo": {
        "pgpo/dependency_mean": within(1e-4, 10),
        "pgpo/weight_max": sometimes(1.05),
        "pgpo/mass_scale": within(0, 1),
    },
    "ktr": {
        "ktr/visual_frac": within(0.2, 0.5),
        "ktr/temporal_frac": within(0.05, 0.5),  # two of the four prompts with media have a video
        "ktr/kept_frac": within(0.3, 1),
        "ktr/overlap_frac": within(0, 0.5),
    },
    "ral": {"ral/visual_mass": within(0.02, 0.9), "ral/jsd": sometimes(1e-4), "ral/attention_entropy": within(1, 6)},
    "attn_distill": {
        "attn_distill/visual_mass": within(0.02, 0.9),
        "attn_distill/jsd": within(1e-3, math.log(2)),
        "attn_distill/gkd": within(1e-3, 10),
    },
    "papo": {"papo/kl": within(1e-4, 10), "papo/entropy": within(0.1, 8), "papo/entropy_masked": within(0.1, 8)},
    "vppo": {"vppo/dependency_mean": within(1e-4, 10), "vppo/kept_frac": within(0.4, 0.9)},
    "t_grpo": {"t_grpo/ordered_accuracy": within(-0.1, 1.1), "t_grpo/shuffled_accuracy": within(-0.1, 1.1)},
    "tw_grpo": {"tw_grpo/divergence_mean": sometimes(1e-3), "tw_grpo/weight_max": sometimes(1.1)},
}


def test_the_table_has_every_method():
    assert LOGGED.keys() == TRAINERS.keys()


@pytest.mark.parametrize(("family", "method"), TABLE)
def test_two_steps_on_mixed_rows(family, method, clips, pictures, tmp_path):
    trainer = trainer_of(family, method, tmp_path, mixed(clips, pictures))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    still = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert not still
    losses, norms, skipped = history(trainer, "loss", "grad_norm", "media/skipped")
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert all(1e-2 < norm < 100 for norm in norms)
    assert set(skipped) == {0.0}
    for metric, accepts in LOGGED[method].items():
        (values,) = history(trainer, metric)
        assert values, metric
        assert accepts(values), (metric, values)
    weights = [batch["token_weights"] for batch in trainer._buffered_inputs if "token_weights" in batch]
    if method in ("pgpo", "ktr"):
        # (B,T): tokens of one completion differ with media; the two rows of text have weight 1 in PGPO.
        weights = torch.cat(weights)
        uneven = (weights.amax(1) - weights.amin(1)) > 1e-3
        assert uneven.sum() > 5
