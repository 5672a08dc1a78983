"""T-GRPO: the temporal bonus by hand and against a plain loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_perception.objectives import t_grpo_bonus


def test_bonus_by_hand():
    accuracy = torch.tensor([1.0, 0.0, 0.5, 0.1])  # mean .4; correct: above .1
    # .4 >= .8 * .5 = .4: the bound itself counts
    found = t_grpo_bonus(accuracy, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.3, 0.0, 0.3, 0.0]))
    # .4 < .8 * .75 = .6
    assert t_grpo_bonus(accuracy, torch.tensor([1.0, 0.5])).tolist() == [0.0] * 4
    assert t_grpo_bonus(accuracy, torch.tensor([1.0, 0.5]), margin=0.5).sum() > 0
    assert t_grpo_bonus(accuracy, torch.tensor([0.0]), correct_above=0.5).tolist() == pytest.approx([0.3, 0, 0, 0])
    assert t_grpo_bonus(accuracy, torch.tensor([0.0]), bonus=0.0).tolist() == [0.0] * 4  # GRPO


def test_nobody_correct_and_nothing_known_earn_nothing():
    nan = math.nan
    assert t_grpo_bonus(torch.zeros(3), torch.zeros(2)).tolist() == [0.0] * 3
    assert t_grpo_bonus(torch.tensor([nan, nan]), torch.ones(1)).tolist() == [0.0] * 2
    assert t_grpo_bonus(torch.ones(2), torch.tensor([nan])).tolist() == [0.0] * 2
    # of those that apply: 1 >= .8 * 1
    assert t_grpo_bonus(torch.tensor([1.0, nan]), torch.tensor([nan, 1.0])).tolist() == pytest.approx([0.3, 0.0])


@given(
    ordered=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8),
    shuffled=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4),
)
def test_it_is_the_loop(ordered, shuffled):
    found = t_grpo_bonus(torch.tensor(ordered), torch.tensor(shuffled)).tolist()
    helps = sum(ordered) / len(ordered) >= 0.8 * sum(shuffled) / len(shuffled) - 1e-12
    assert found == pytest.approx([0.3 if helps and value > 0.1 else 0.0 for value in ordered])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bonus": -0.1}, "bonus is -0.1"),
        ({"margin": math.nan}, "margin is nan"),
        ({"correct_above": -1.0}, "correct_above is -1.0"),
        ({"accuracy": torch.ones(2, 2)}, "accuracy has shape"),
        ({"shuffled_accuracy": torch.ones(2, dtype=torch.long)}, "shuffled_accuracy has dtype"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        t_grpo_bonus(**{"accuracy": torch.ones(2), "shuffled_accuracy": torch.ones(1), **change})
