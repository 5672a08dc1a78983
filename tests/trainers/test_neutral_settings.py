"""Two steps of each method to compare with in its neutral setting: the losses and gradients of GRPO."""

import pytest

from tests.helpers import COMPARED
from tests.trainers.reference import outcome
from tests.trainers.test_papo_trainer import NEUTRAL as PAPO
from tests.trainers.test_vppo_trainer import NEUTRAL as VPPO
from trl_perception.trainers import TRAINERS, GRPOVideoTrainer

NEUTRAL = {"papo": PAPO, "t_grpo": {"temporal_bonus": 0.0}, "tw_grpo": {"alpha": 1.0}, "vppo": VPPO}


def test_every_method_that_is_compared_has_a_neutral_setting(rows, make_trainer):
    assert NEUTRAL.keys() == set(COMPARED)
    shared = {"num_generations": 2, "num_iterations": 2, "max_steps": 2, "learning_rate": 3e-5, "loss_type": "dapo"}
    shared["epsilon_high"] = 0.28
    grpo = outcome(make_trainer, rows["mixed"], GRPOVideoTrainer, **shared)
    for name, settings in NEUTRAL.items():
        same = outcome(make_trainer, rows["mixed"], TRAINERS[name], **shared, **settings)
        for mine, theirs in zip(same, grpo, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6, rel=1e-6), name
