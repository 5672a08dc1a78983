"""The reward's gain by hand, and its picture."""

import pytest
from PIL import Image

from trl_perception.reports import reward_curve, reward_gain


def history(rewards):
    return [{"step": i + 1, "reward": r, "rewards/accuracy/mean": r / 2} for i, r in enumerate(rewards)]


def test_gain_is_last_tenth_minus_first():
    # 20 steps: a tenth is 2. First (0 + 0.2) / 2 = 0.1, last (0.6 + 0.8) / 2 = 0.7
    assert reward_gain(history([0.0, 0.2, *[9.0] * 16, 0.6, 0.8])) == pytest.approx((0.1, 0.7))
    # 3 steps: a tenth is at least one step; entries without a reward (stale updates) do not count
    log = [{"step": 0, "loss": 1.0}, *history([0.25, 9.0, 0.5]), {"train_runtime": 1.0}]
    assert reward_gain(log) == (0.25, 0.5)
    assert reward_gain([{"step": 1, "loss": 1.0}]) is None


def test_curve_draws_each_reward(tmp_path):
    path = reward_curve(history([0.1, 0.5, 0.9]), tmp_path / "curve.png")
    with Image.open(path) as picture:
        assert picture.size[0] > 800
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10  # axes, two lines, a legend
    assert reward_curve([], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
