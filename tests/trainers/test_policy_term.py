"""What scales the policy term leaves TRL's entropy bonus and the experts' loss alone."""

import pytest
import torch

from tests.helpers import history, message
from tests.trainers.test_bad_input import Batches


class WithExperts(Batches):
    """The forward returns an auxiliary loss of 3, as a mixture-of-experts model does."""

    policy_loss_weight = 0.25

    def _scores_of_update(self, *args):
        enabled, self.aux_loss_enabled = self.aux_loss_enabled, False
        scores = super()._scores_of_update(*args)
        self.aux_loss_enabled = enabled
        return scores._replace(aux_loss=torch.tensor(3.0) if enabled else None)


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "luspo", "dapo"])
def test_only_the_policy_term_is_scaled(make_trainer, clips, loss_type):
    """One of two groups is left out, so that a mean over rows is doubled; a quarter of the policy term is wanted."""
    broken = {"prompt": message("Gone?", "video"), "videos": ["/nowhere.mp4"]}
    good = {"prompt": message("Colour?", "video"), "videos": clips[:1]}
    config = {"per_device_train_batch_size": 8, "on_bad_media": "skip", "max_steps": 1, "beta": 0.1}
    trainer = make_trainer([good, broken], cls=WithExperts, loss_type=loss_type, num_iterations=2, **config)
    with pytest.warns(UserWarning, match="Left out"):
        trainer.train()
    (batch, _), *_ = trainer.batches
    before = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}

    def loss_of(weight, bonus, experts, scale=None):
        trainer.policy_loss_weight = weight
        trainer._entropy_bonus_enabled, trainer.entropy_coef = bonus > 0, bonus
        trainer.aux_loss_enabled, trainer.router_aux_loss_coef = experts > 0, experts
        given = batch if scale is None else {**batch, "row_scale": torch.tensor(scale)}
        return trainer._compute_loss(trainer.model, given).item()

    policy = loss_of(1.0, 0.0, 0.0, scale=1.0)
    assert abs(policy) > 1e-3
    entropy = trainer._metrics["train"]["entropy"][-1]  # over the tokens of the group that counts
    rows = 1.0 if loss_type == "dapo" else 2.0
    assert loss_of(0.25, 0.0, 0.0) == pytest.approx(0.25 * rows * policy, rel=1e-5)
    whole = loss_of(0.25, 0.5, 2.0)
    assert whole == pytest.approx(0.25 * rows * policy - 0.5 * entropy + 2.0 * 3.0, rel=1e-5)
    # what other terms and later updates read is as it was
    assert trainer.beta == 0.1
    assert all(torch.equal(batch[name], value) for name, value in before.items())
    assert history(trainer, "media/skipped") == [[1.0]]
