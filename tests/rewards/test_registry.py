import pytest

from trl_perception.rewards import REWARDS, accuracy_reward, answer_format_reward, get_reward


def test_registry_names():
    assert set(REWARDS) == {"accuracy", "format", "answer_format", "temporal_iou"}
    assert all(get_reward(name) is reward for name, reward in REWARDS.items())


def test_rewards_have_distinct_names_for_trl_metrics():
    assert len({reward.__name__ for reward in REWARDS.values()}) == len(REWARDS)


def test_dotted_paths_resolve():
    assert get_reward("trl_perception.rewards.accuracy.accuracy_reward") is accuracy_reward
    assert get_reward("trl_perception.rewards.answer_format_reward") is answer_format_reward


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("acuracy", "accuracy"), ("formats", "format"), ("temporal", "temporal_iou"), ("answer-format", "answer_format")],
)
def test_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown reward '{name}'; did you mean '{nearest}'"):
        get_reward(name)


@pytest.mark.parametrize("name", ["", ".", "a.", ".accuracy", "a..b", "my module.reward", "9"])
def test_malformed_name_is_unknown(name):
    with pytest.raises(ValueError, match="unknown reward"):
        get_reward(name)


def test_path_that_does_not_import_says_so():
    with pytest.raises(ImportError, match=r"importing 'no_such_package\.rewards' failed.*PYTHONPATH"):
        get_reward("no_such_package.rewards.mine")
    with pytest.raises(ImportError, match=r"module 'trl_perception\.rewards' has no 'mine'"):
        get_reward("trl_perception.rewards.mine")


def test_path_to_something_else_than_a_function():
    with pytest.raises(TypeError, match="is a dict, not a function"):
        get_reward("trl_perception.rewards.REWARDS")
