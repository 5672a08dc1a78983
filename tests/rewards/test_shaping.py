import pickle

import pytest

from trl_perception.rewards import LengthWindow, repetition, soft_overlong
from trl_perception.rewards.checked import checked

RIGHT, WRONG = "<answer>B</answer>", "<answer>A</answer>"


def call(reward, lengths, completions=None):
    """Scores of completions of these lengths; all are right by default."""
    return reward(
        prompts=["?"] * len(lengths),
        completions=completions or [RIGHT] * len(lengths),
        completion_ids=[[1] * length for length in lengths],
        solution=["B"] * len(lengths),
        problem_type=["multiple choice"] * len(lengths),
    )


def test_length_window_pays_right_answers_inside_it_both_ends_included():
    assert call(LengthWindow(), [319, 320, 400, 512, 513]) == [0.0, 0.2, 0.2, 0.2, 0.0]
    assert call(LengthWindow(), [400, 400, 400], [RIGHT, WRONG, "B"]) == [0.2, 0.0, 0.0]
    assert call(LengthWindow(low=1, high=2, bonus=1.0), [0, 1, 2, 3]) == [0.0, 1.0, 1.0, 0.0]


def test_length_window_takes_an_accuracy_above_its_threshold_for_right():
    arguments = {"prompts": ["?"] * 2, "completion_ids": [[1] * 4] * 2, "problem_type": ["regression"] * 2}
    completions = ["<answer>11</answer>", "<answer>19</answer>"]
    # 1 - 1/10 = 0.9 and 1 - 9/10 = 0.1, which is not above 0.1
    window = LengthWindow(low=1, high=9)
    assert window(completions=completions, solution=["10", "10"], **arguments) == [0.2, 0.0]


def test_length_window_reads_boxed_answers_where_configured():
    assert call(LengthWindow(low=0, boxed=True), [4, 4], ["\\boxed{B}", RIGHT]) == [0.2, 0.0]


def test_length_window_needs_token_counts():
    with pytest.raises(ValueError, match="length_window_reward needs the dataset column 'completion_ids'"):
        LengthWindow()(["?"], [RIGHT], solution=["B"], problem_type=["multiple choice"])


def test_soft_overlong_falls_from_zero_to_minus_one_over_the_cache():
    # 0 up to 10 - 4 = 6, then (6 - length) / 4: 7 -> -1/4, 8 -> -1/2, 10 -> -1, beyond -1
    reward = soft_overlong(max_completion_length=10, cache=4)
    assert call(reward, [0, 6, 7, 8, 10, 11]) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert call(soft_overlong(max_completion_length=10, cache=0), [10, 11]) == [0.0, -1.0]


def test_repetition_counts_ngrams_said_again():
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2], [1], []]
    # pairs: 3 of 3 distinct; 1 of 4: -(1 - 1/4); 12, 21, 12: 2 of 3, -(1 - 2/3); too short; empty
    found = repetition(ngram_size=2)(completions=["x"] * 5, completion_ids=ids)
    assert found == pytest.approx([0.0, -0.75, -1 / 3, 0.0, 0.0])
    assert repetition(ngram_size=2, max_penalty=-0.1)(completion_ids=ids)[1] == pytest.approx(-0.075)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LengthWindow(low=9, high=8), "low is 9, high is 8"),
        (lambda: LengthWindow(low=-1), "low is -1"),
        (lambda: LengthWindow(correct_above=1.0), "correct_above is 1.0"),
        (lambda: soft_overlong(max_completion_length=10, cache=11), "cache is 11, max_completion_length is 10"),
        (lambda: soft_overlong(max_completion_length=10, cache=-1), "cache is -1"),
        (lambda: soft_overlong(max_completion_length="10", cache=4), "whole numbers"),
        (lambda: repetition(ngram_size=0), "ngram_size is 0"),
        (lambda: repetition(max_penalty=1.0), "max_penalty is 1.0"),
        (lambda: repetition(max_penalty=float("nan")), "max_penalty is nan"),
    ],
)
def test_parameters_without_a_meaning_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (LengthWindow(), "length_window_reward"),
        (soft_overlong(max_completion_length=10, cache=4), "soft_overlong_punishment_reward"),
        (repetition(), "repetition_penalty_reward"),
    ],
)
def test_made_rewards_have_names_for_metrics_and_can_be_sent_to_other_processes(reward, name):
    assert checked(reward).__name__ == name
    assert call(pickle.loads(pickle.dumps(reward)), [400]) == call(reward, [400])
