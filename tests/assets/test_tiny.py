"""The embedded model, loaded like any other model."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from trl_perception.assets import from_pretrained, model_path
from trl_perception.assets.batches import encode_examples, encode_prompts, load_medium
from trl_perception.assets.evaluate_tiny import FORMAT, complete, evaluate, score
from trl_perception.assets.tiny_model import SPECIAL_TOKENS
from trl_perception.data import make_synthetic_dataset

FOLDER = Path(model_path("tiny"))


@pytest.fixture(scope="module")
def tiny():
    model, processor = from_pretrained("tiny")
    return model.eval(), processor


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return list(
        make_synthetic_dataset(tmp_path_factory.mktemp("rows"), size=28, seed=123, medium="mixed", split="test")
    )


@pytest.fixture(scope="module")
def media(rows):
    return [load_medium(row) for row in rows]


def test_it_loads_with_the_auto_classes_alone():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    processor = AutoProcessor.from_pretrained(FOLDER)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.text_config.num_key_value_heads < model.config.text_config.num_attention_heads
    assert model.config.text_config.vocab_size == len(processor.tokenizer)


def test_it_stays_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 8 * 2**20


def test_model_path_passes_other_names_through(tmp_path):
    assert model_path("tiny") == str(FOLDER)
    assert model_path(str(tmp_path)) == str(tmp_path)
    assert model_path("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert model_path("..") == ".."


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "runs/nowhere/checkpoint-5"])
def test_what_can_only_be_a_folder_and_is_none_is_refused(name):
    with pytest.raises(FileNotFoundError, match=f"The model .*{name[1:]} is no folder"):
        model_path(name)


def test_a_recipe_may_write_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_path("~/model") == str(tmp_path / "model")


def test_ids_agree_between_tokenizer_config_and_generation(tiny):
    model, processor = tiny
    ids = dict(zip(SPECIAL_TOKENS, processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    assert len(set(ids.values())) == len(SPECIAL_TOKENS)
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id == ids["<|endoftext|>"]
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id == ids["<|im_end|>"]
    assert (model.config.image_token_id, model.config.video_token_id) == (ids["<|image_pad|>"], ids["<|video_pad|>"])
    assert (processor.image_token_id, processor.video_token_id) == (ids["<|image_pad|>"], ids["<|video_pad|>"])


@pytest.mark.parametrize(
    "text", ["What color is it?", "naïve café 東京 Ω≤∞", "😀👩‍👩‍👧", "a\tb\n\n c\x00\x7f", "<think>x</think>"]
)
def test_any_text_survives_the_tokenizer(tiny, text):
    tokenizer = tiny[1].tokenizer
    ids = tokenizer(text)["input_ids"]
    assert None not in ids
    assert tokenizer.decode(ids) == text


def test_answer_tags_are_one_token_each_and_stay_in_decoded_text(tiny):
    tokenizer = tiny[1].tokenizer
    text = "<think>red</think><answer>red</answer>"
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    # 4 tags, 2 words and the end of the turn
    assert len(ids) == 7
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_chat_template_writes_turns_and_placeholders(tiny):
    blocks = [{"type": "video", "text": None}, {"type": "image"}, {"type": "text", "text": "Why?"}]
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": blocks}]
    assert tiny[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nLook.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>Why?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(Exception, match="'audio' is unknown"):
        tiny[1].apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}], tokenize=False)


def test_a_clip_is_32_tokens_at_its_own_size_and_times(tiny, rows, media):
    model, processor = tiny
    index = next(i for i, row in enumerate(rows) if row["videos"])
    inputs = encode_prompts(processor, rows[index : index + 1], media[index : index + 1])
    # 16 frames / 2 a temporal step = 8; 56 / 14 = 4 patches a side; 8 * 4 * 4 / (2 * 2 merged) = 32 tokens
    assert inputs["video_grid_thw"].tolist() == [[8, 4, 4]]
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 32
    # two frames at 4 a second
    assert torch.as_tensor(inputs["second_per_grid_ts"]).tolist() == [0.5]
    assert torch.equal(inputs["mm_token_type_ids"] == 2, inputs["input_ids"] == model.config.video_token_id)


def test_clips_images_and_texts_of_a_batch_are_distinguished(tiny, rows, media):
    model, processor = tiny
    torch.manual_seed(0)
    together = complete(model, processor, rows, media, max_new_tokens=24)
    alone = [
        complete(model, processor, [row], [medium], max_new_tokens=24)[0]
        for row, medium in zip(rows, media, strict=True)
    ]
    # padding and neighbours change sums in the last bits only, which may tip a rare near-tie
    assert sum(one == other for one, other in zip(together, alone, strict=True)) >= len(rows) - 2


def test_it_answers_in_the_right_format(tiny, rows, media):
    completions = complete(*tiny, rows, media)
    assert sum(FORMAT.fullmatch(text) is not None for text in completions) >= 0.9 * len(rows)


def test_it_sees_what_it_names(tiny, tmp_path):
    rows = list(make_synthetic_dataset(tmp_path, size=60, seed=321, split="test", families=["scene_color", "static"]))
    table = evaluate(*tiny, rows, [load_medium(row) for row in rows])
    assert table["all"]["greedy"] > table["all"]["swapped"] + 0.15
    assert table["all"]["greedy"] > 0.4


def test_scores_follow_the_problem_type():
    row = {"prompt": [], "options": []}
    times = row | {"solution": "1.0 to 3.0", "problem_type": "temporal grounding"}
    letter = row | {"solution": "B", "problem_type": "multiple choice", "options": ["A. red", "B. blue"]}
    tag = "<think></think><answer>{}</answer>".format
    # overlap 2.0 to 3.0 is 1 s, together 1.0 to 4.0 is 3 s
    assert score([times, letter, letter], [tag("2.0 to 4.0"), tag("B"), tag("A")]) == pytest.approx([1 / 3, 1.0, 0.0])


def test_labels_hold_the_reference_completion_and_nothing_else(tiny, rows, media):
    processor = tiny[1]
    inputs, labels = encode_examples(processor, rows[:9], media[:9])
    width = labels.shape[1]
    for row, ids, tail in zip(rows, labels, inputs["input_ids"][:, -width:], strict=False):
        kept = ids[ids != -100]
        assert processor.tokenizer.decode(kept) == (
            f"<think>{row['reasoning']}</think><answer>{row['solution']}</answer><|im_end|>"
        )
        assert torch.equal(kept, tail[: len(kept)])
    assert not inputs["mm_token_type_ids"][:, -width:].any()


def test_model_card_quotes_a_command_that_exists():
    card = (FOLDER / "README.md").read_text()
    modules = re.findall(r"python -m (trl_perception[\w.]+)", card)
    assert modules == ["trl_perception.assets.train_tiny", "trl_perception.assets.evaluate_tiny"]
    root = Path(__file__).parents[2]
    assert (root / re.search(r"--config (\S+)", card)[1]).exists()
