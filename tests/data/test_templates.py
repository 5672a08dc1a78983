"""Prompt templates: where their text is inserted, what it depends on, and what is refused."""

import pytest
from datasets import Dataset

from tests.helpers import message
from trl_perception.data.load import load_rows
from trl_perception.data.templates import (
    ANSWER_ONLY,
    BY_TYPE,
    TEMPLATES,
    THINK_ANSWER,
    apply_template,
    templated_prompt,
)
from trl_perception.rewards import answer_format_reward, format_reward


def test_the_text_follows_the_last_user_turn():
    turns = [*message("First?"), {"role": "assistant", "content": "Yes."}, *message("Second?", "video")]
    turns.append({"role": "assistant", "content": "<think>"})
    before = [dict(turn) for turn in turns]
    new = templated_prompt(turns, "think_answer")
    assert new[2]["content"] == [{"type": "video"}, {"type": "text", "text": f"Second?\n{THINK_ANSWER}"}]
    assert [new[0], new[1], new[3]] == [turns[0], turns[1], turns[3]]
    assert turns == before  # the given prompt is not modified


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Why?", f"Why?\n{ANSWER_ONLY}"),
        ([{"role": "user", "content": "Why?"}], [{"role": "user", "content": f"Why?\n{ANSWER_ONLY}"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image", "text": None}]}],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Why?"},
                        {"type": "image", "text": None},
                        {"type": "text", "text": ANSWER_ONLY},
                    ],
                }
            ],
        ),
    ],
)
def test_every_form_of_prompt_takes_it(prompt, expected):
    assert templated_prompt(prompt, "answer_only") == expected
    assert templated_prompt(prompt, "none") == prompt


def test_malformed_prompts_are_left_to_the_check_of_all_rows():
    prompts = [None, [{"content": "?", "role": None}], [{"role": "user", "content": "?"}]]
    rows = apply_template(Dataset.from_dict({"prompt": prompts}), "answer_only")
    assert list(rows["prompt"])[:2] == [None, [{"content": "?", "role": None}]]
    assert rows["prompt"][2][0]["content"] == f"?\n{ANSWER_ONLY}"


def test_a_row_that_the_template_does_not_suit_is_named():
    rows = Dataset.from_list([{"prompt": "?", "problem_type": kind} for kind in ("OCR", "math")])
    with pytest.raises(ValueError, match=r"row 2 of the data: .* no sentence for problem_type 'math'"):
        apply_template(rows, "video_r1")


def test_video_r1_adds_a_sentence_for_each_type():
    texts = {kind: templated_prompt("?", "video_r1", kind) for kind in BY_TYPE}
    assert all(texts[kind].endswith(sentence) for kind, sentence in BY_TYPE.items())
    same = [("numerical", "regression"), ("free-form", "free text"), ("box grounding", "spatial grounding")]
    assert all(texts[one] == texts[other] for one, other in same)
    assert len(set(texts.values())) == len(BY_TYPE) - len(same)
    with pytest.raises(ValueError, match="no sentence for problem_type 'math'"):
        templated_prompt("?", "video_r1", "math")


def test_templates_ask_for_the_tags_that_format_rewards_want():
    for name in ("think_answer", "video_r1"):
        assert all(tag in TEMPLATES[name].instruction for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    for name, of in (("reason_answer", "think_answer"), ("reason_boxed", "boxed"), ("video_r1_reason", "video_r1")):
        assert TEMPLATES[name].instruction.count("<reason>") == TEMPLATES[name].instruction.count("</reason>") == 1
        assert TEMPLATES[name].instruction.replace("reason>", "think>") == TEMPLATES[of].instruction
        assert TEMPLATES[name].by_type == TEMPLATES[of].by_type
    for name in ("answer_only", "video_r1_answer_only", "reason_answer", "reason_boxed", "video_r1_reason"):
        assert "think>" not in TEMPLATES[name].instruction
    assert "\\boxed{}" in TEMPLATES["boxed"].instruction
    assert "<answer>" not in TEMPLATES["boxed"].instruction
    assert format_reward([], ["<think>a</think><answer>b</answer>"]) == [1.0]
    assert answer_format_reward([], ["<answer>b</answer>"]) == [1.0]


def test_rows_get_a_template_once():
    rows = Dataset.from_list([{"prompt": message("One?", "video"), "problem_type": "numerical", "videos": ["a.mp4"]}])
    once = apply_template(rows, "video_r1")
    assert once[0]["prompt"][0]["content"][1]["text"].startswith("One?\nThink it through")
    assert once[0]["prompt_template"] == "video_r1"
    assert apply_template(once, "video_r1").to_list() == once.to_list()
    assert apply_template(once, "none") is once
    assert apply_template(rows, "none") is rows
    with pytest.raises(ValueError, match="prepared with the prompt template 'video_r1', and 'boxed' would follow"):
        apply_template(once, "boxed")


def test_loaded_rows_carry_the_recipes_template(tmp_path):
    options = {"size": 2, "output_dir": str(tmp_path)}
    plain = load_rows("synthetic", "train", synthetic=options)
    boxed = load_rows("synthetic", "train", synthetic=options, prompt_template="boxed")
    for one, other in zip(plain, boxed, strict=True):
        text = one["prompt"][0]["content"][-1]["text"]
        assert other["prompt"][0]["content"][-1]["text"] == f"{text}\n{TEMPLATES['boxed'].instruction}"
        assert one["solution"] == other["solution"]


def test_what_cannot_take_a_template_is_refused():
    with pytest.raises(ValueError, match="unknown prompt template 'think-answer'; did you mean 'think_answer'"):
        templated_prompt("?", "think-answer")
    with pytest.raises(ValueError, match="needs a user turn"):
        templated_prompt([{"role": "system", "content": "Be brief."}], "boxed")
