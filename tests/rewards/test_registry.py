import pickle

import pytest

from trl_perception.rewards import (
    REWARD_FACTORIES,
    REWARDS,
    LengthWindow,
    accuracy_reward,
    answer_format_reward,
    get_reward,
)
from trl_perception.rewards.checked import checked
from trl_perception.train import parse

NAMES = "accuracy boxed_accuracy format answer_format boxed_format temporal_iou box_iou"


def test_registry_names():
    assert list(REWARDS) == NAMES.split()
    assert list(REWARD_FACTORIES) == ["length_window", "soft_overlong", "repetition"]
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


def test_parameters_reach_the_factory():
    assert get_reward("length_window") == LengthWindow()
    assert get_reward("length_window()") == LengthWindow()
    assert get_reward(" length_window( low=100, high = 4_00, bonus=1e-1, boxed=True )") == LengthWindow(
        100, 400, 0.1, boxed=True
    )
    # 90 tokens are half way through the last 20 of 100
    assert get_reward("soft_overlong(max_completion_length=100, cache=20)")(completion_ids=[[1] * 90]) == [-0.5]
    assert get_reward("trl_perception.rewards.shaping.LengthWindow(low=7)") == LengthWindow(low=7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("soft_overlong", r"missing a required argument.*max_completion_length"),
        ("length_window(lo=3)", r"unexpected keyword argument 'lo'.*low: int = 320"),
        ("length_window(low=9, high=8)", "low is 9, high is 8"),
        ("length_window(320, 512)", "given by keyword"),
        ("length_window(**{})", "given by keyword"),
        ("length_window(low=320", "does not parse.*quote the whole in a YAML list"),
        ("length_window(low=__import__('os').getpid())", "does not parse"),
        ("length_window(low=x)", "does not parse"),
        ("length_window(low=1)(low=2)", "one pair of parentheses"),
        ("length_window() or 1", "does not parse"),
        ("accuracy(low=3)", "'accuracy' takes answer_reading, partial_credit, found 'low'"),
        ("accuracy(answer_reading='strict')", "answer_reading is 'strict'; set it to one of lenient, exact"),
        ("length_window(answer_reading='strict')", "answer_reading is 'strict'; set it to one of lenient, exact"),
        ("format(answer_reading='exact')", "'format' takes thinking_tag, found 'answer_reading'"),
        ("boxed_accuracy(low=3)", "'boxed_accuracy' takes answer_reading, thinking_tag, partial_credit, found 'low'"),
        ("answer_format(thinking_tag='reason')", "'answer_format' takes no parameters, found 'thinking_tag'"),
        ("format(thinking_tag='<reason>')", "thinking_tag is '<reason>'; set it to the name of the tags"),
        ("boxed_format(thinking_tag='answer')", "thinking_tag is 'answer'; set it to the name of the tags"),
        ("length_window(thinking_tag=None)", "thinking_tag is None; set it to the name of the tags"),
        ("lenght_window(low=3)", "did you mean 'length_window'"),
    ],
)
def test_parameters_that_are_not_taken_say_so(name, words):
    with pytest.raises(ValueError, match=words):
        get_reward(name)


@pytest.mark.parametrize("name", ["accuracy", "boxed_accuracy", "temporal_iou", "box_iou"])
def test_rewards_that_read_answers_take_how(name):
    assert get_reward(f"{name}()") is REWARDS[name]
    exact = pickle.loads(pickle.dumps(get_reward(f"{name}(answer_reading='exact')")))
    assert checked(exact).__name__ == REWARDS[name].__name__
    kind, solution, answer = {
        "temporal_iou": ("temporal grounding", "2 to 3", "2 → 3"),
        "box_iou": ("box grounding", "[1, 2, 3, 4]", "1 2 3 4"),
    }.get(name, ("numerical", "3", "3 m"))
    completion = f"\\boxed{{{answer}}}" if name == "boxed_accuracy" else f"<answer>{answer}</answer>"
    columns = {"solution": [solution], "problem_type": [kind]}
    assert (REWARDS[name]([None], [completion], **columns), exact([None], [completion], **columns)) == ([1.0], [0.0])


def test_a_factory_of_ones_own_has_to_make_a_function():
    with pytest.raises(TypeError, match=r"'fractions.Fraction\(numerator=3\)' made a Fraction, not a function"):
        get_reward("fractions.Fraction(numerator=3)")


def test_parameters_travel_through_a_recipe_and_the_command_line(tmp_path):
    named = ["accuracy", "length_window(low=100, high=400)", "soft_overlong(max_completion_length=384, cache=128)"]
    recipe = tmp_path / "recipe.yaml"
    lines = ["trainer: grpo", "model_name_or_path: tiny", "dataset_name: synthetic", f"output_dir: {tmp_path}"]
    lines += ["bf16: false", "use_cpu: true", "reward_funcs:", *(f'  - "{name}"' for name in named)]
    recipe.write_text("\n".join(lines))
    script, _, _ = parse(["--config", str(recipe)])
    assert script.reward_funcs == named
    script, _, _ = parse(["--config", str(recipe), "--reward_funcs", *reversed(named)])
    assert script.reward_funcs == named[::-1]
    assert get_reward(script.reward_funcs[1]) == LengthWindow(100, 400)
