"""What a run says of its processor at the start: pairs around clips, and tags of prompts."""

import copy
import logging

import pytest

from tests.families.test_forwards import OURS
from tests.families.tiny import tiny
from tests.families.training import mixed, trainer_of
from trl_perception.data.start_checks import box_finding, clip_finding, tag_findings
from trl_perception.media import PromptPreparer

TWICE = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
ASKS = [
    {
        "role": "user",
        "content": "<think> </think> or <reason> </reason>, then <answer> </answer>. Is 1 <b> 2?",
    }
]


def preparer_of(name, template=None, added=(), **kwargs):
    """A preparer on a copy of the family's processor, with another chat template and added tokens."""
    processor = copy.deepcopy(tiny(name).processor)
    processor.chat_template = template or processor.chat_template
    processor.tokenizer.add_tokens(list(added), special_tokens=False)
    return PromptPreparer(processor, chat_template_kwargs=kwargs)


@pytest.mark.parametrize("name", OURS)
def test_a_clip_that_is_wrapped_twice_is_found_in_its_ids(name):
    found = list(clip_finding(preparer_of(name)))
    assert [notable for notable, _ in found] == ([True] if name in TWICE else [False] * len(found))
    if name in TWICE:
        assert "<|vision_start|> before each of 2 cells, and the chat template writes 1 more" in found[0][1]
        # With a template that writes the placeholder alone there is one pair a cell.
        plain = tiny(name).processor.chat_template.replace(
            "<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>"
        )
        ((notable, line),) = clip_finding(preparer_of(name, plain))
        assert not notable
        assert "the chat template none besides" in line
    assert len(found) == (name not in ("qwen2_vl", "qwen2_5_vl"))  # there a clip is one run between one pair


def test_tags_are_text_or_one_token():
    """The tiny tokenizers have <think> and <answer> as added tokens, as Qwen3's have <think>; <reason> is text to them."""
    words = tiny("qwen3_vl").processor.tokenizer
    found = dict(zip(("answer", "reason", "think"), tag_findings(preparer_of("qwen3_vl"), ASKS), strict=True))
    assert [notable for notable, _ in found.values()] == [False, False, False]
    assert (
        f"<think>, which the prompts ask for, is one added token (id {words.convert_tokens_to_ids('<think>')})"
        in found["think"][1]
    )
    assert "reason_answer" in found["think"][1]
    ids = words("<reason>", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert found["reason"][1] == f"<reason>, which the prompts ask for, is text: {len(ids)} tokens of this tokenizer."
    # A tag that the tokenizer gets as a token is one.
    found = list(tag_findings(preparer_of("qwen3_vl", added=["<reason>"]), ASKS))
    assert all("is one added token" in line for _, line in found)
    shown = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert list(tag_findings(preparer_of("qwen3_vl"), shown)) == []


@pytest.mark.parametrize(
    ("writes", "said"), [("<think>\n", "opens <think>"), ("<think>\n\n</think>\n\n", "opens and closes <think>")]
)
def test_a_tag_that_the_generation_prompt_opens_is_named(writes, said):
    template = tiny("qwen3_5").processor.chat_template
    thinks = template.replace("{%- if add_generation_prompt %}", "{%- if add_generation_prompt and not plain %}")
    head, tail = thinks.rsplit("{%- endif %}", 1)
    thinks = f"{head}{{{{- {writes!r} }}}}{{%- endif %}}{tail}"
    found = [line for notable, line in tag_findings(preparer_of("qwen3_5", thinks), "Say red.") if notable]
    assert len(found) == 1
    assert said in found[0]
    assert not list(tag_findings(preparer_of("qwen3_5", thinks, plain=True), "Say red."))


def test_a_trainer_says_it_once_at_the_start(clips, pictures, tmp_path, caplog, capsys):
    rows = [{**row, "problem_type": "free-form", "solution": "red"} for row in mixed(clips, pictures)]
    rows[-1] |= {"problem_type": "box grounding", "solution": "[1, 2, 30, 40]"}
    with caplog.at_level(logging.INFO):
        trainer_of("qwen3_vl", "grpo", tmp_path, rows)
    assert "A solution of this data is [1.0, 2.0, 30.0, 40.0], and qwen3_vl writes 0 to 1000" in capsys.readouterr().out
    lines = [record for record in caplog.records if "wrapped twice" in record.getMessage()]
    assert [record.levelname for record in lines] == ["WARNING"]


@pytest.mark.parametrize(
    ("model_type", "solution", "notable", "said"),
    [
        ("qwen3_vl", "[100, 200, 900, 1000]", False, "qwen3_vl writes 0 to 1000 along either side."),
        ("qwen3_vl", [100, 200, 1300, 900], True, "the two differ"),
        ("qwen2_5_vl", "[100, 200, 1300, 900]", False, "qwen2_5_vl writes pixels of the resized image."),
        ("qwen2_5_vl", "[0.1, 0.2, 0.9, 1.0]", True, "the two differ"),
        ("internvl", "[100, 200, 300, 400]", False, "numbers that are not known here"),
    ],
)
def test_numbers_of_boxes_are_compared_with_the_models(model_type, solution, notable, said):
    found = list(
        box_finding(preparer_of(model_type), model_type, {"problem_type": "box grounding", "solution": solution})
    )
    assert [of_one for of_one, _ in found] == [notable]
    assert said in found[0][1]
    assert not list(box_finding(preparer_of(model_type), model_type, {}))
