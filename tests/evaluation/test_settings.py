"""Settings and the command's options."""

import pytest

from trl_perception.cli.evaluate import parse
from trl_perception.evaluation import EvaluationSettings

NEEDED = ["--model", "tiny", "--data", "rows.jsonl", "--output", "out"]


def test_options_become_settings_in_either_spelling():
    _, settings = parse([*NEEDED, "--video-fps", "4", "--max_new_tokens", "9", "--rewards", "accuracy,format", "a.b.c"])
    assert (settings.video_fps, settings.max_new_tokens) == (4.0, 9)
    assert settings.rewards == ["accuracy", "format", "a.b.c"]
    assert settings.video_settings.fps == 4.0
    with_parameters = ["accuracy,length_window(low=1, high=9),format", "soft_overlong"]
    assert parse([*NEEDED, "--rewards", *with_parameters])[1].rewards == [
        *("accuracy", "length_window(low=1, high=9)", "format", "soft_overlong")
    ]
    assert parse([*NEEDED, "--by", ""])[1].by == []
    assert parse([*NEEDED, "--synthetic", '{"size": 4}'])[1].synthetic == {"size": 4}
    thinking = ["--chat-template-kwargs", '{"enable_thinking": false}']
    assert parse([*NEEDED, *thinking])[1].chat_template_kwargs == {"enable_thinking": False}


def test_a_recipe_sets_what_the_command_line_does_not():
    _, settings = parse(["--recipe", "grpo/tiny", "--model", "runs/x", "--output", "out", "--video-max-frames", "6"])
    assert (settings.model, settings.data, settings.synthetic) == ("runs/x", "synthetic", {"size": 128, "seed": 1})
    assert (settings.video_fps, settings.video_max_frames, settings.max_new_tokens) == (4.0, 6, 48)
    assert (settings.rewards, settings.dtype) == (["accuracy", "format"], "float32")
    assert settings.temperature == 0.0  # the recipe's is for rollouts
    _, settings = parse(["--recipe", "grpo/qwen3_5_4b", "--model", "runs/x", "--output", "out"])
    assert settings.chat_template_kwargs == {"enable_thinking": False}
    assert settings.rewards == ["accuracy", "format(thinking_tag='reason')"]


def test_a_comparison_needs_no_model():
    options, settings = parse(["--compare", "a", "b"])
    assert (options.compare, settings) == (["a", "b"], None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--video_max_frame", "4"],
            r"Unknown option or stray value '--video_max_frame'\. Did you mean '--video_max_frames'",
        ),
        (["--samples", "4"], "4 samples at temperature 0 would be the same completion 4 times"),
        (["--top-p", "0.9"], "top_p and top_k are for sampling"),
        (["--temperature", "-1"], "temperature -1.0"),
        (["--dtype", "float31"], "dtype is .float31.; one of auto"),
        (["--on-bad-media", "ignore"], "on_bad_media is 'ignore'"),
        (["--rewards", "format"], r"right_by is 'accuracy', which is not among the rewards \(format\)"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--media-cache-dir-gb", "0"], "media_cache_dir_gb is 0.0; a positive number"),
        (["--video-max-frames", "1"], "max_frames is 1"),
        (["--data", ""], r"No data\. Set data"),
        (["--chat-template-kwargs", "{"], r"chat_template_kwargs is '\{', no JSON"),
        (["--chat-template-kwargs", "[1]"], r"chat_template_kwargs is '\[1\]'; a mapping is wanted"),
    ],
)
def test_wrong_settings_name_the_right_ones(arguments, words):
    with pytest.raises(ValueError, match=words):
        parse([*NEEDED, *arguments])


def test_predictions_depend_on_everything_but_where_they_go_and_the_intervals():
    settings = EvaluationSettings(model="tiny", data="rows.jsonl", output="out")
    one = settings.of_predictions()
    assert {"output", "resamples"}.isdisjoint(one)
    assert EvaluationSettings(model="tiny", data="rows.jsonl", output="b", resamples=9).of_predictions() == one
    assert EvaluationSettings(model="tiny", data="rows.jsonl", output="out", seed=1).of_predictions() != one
