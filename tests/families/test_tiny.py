"""The tiny models do what their families do: media count, are seen, are padded and are generated from."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from tests.families.parts import clip, picture
from tests.families.tiny import FAMILIES, saved, tiny
from tests.helpers import message

QUESTION = "Which comes first?"
LONGER = "What is the colour of the scene? Answer in one word."
# Images and clips of each kind of row, in the order of the prompt.
KINDS = {"text": (0, 0), "image": (1, 0), "images": (2, 0), "video": (0, 1), "both": (1, 1)}
# What the families' own processors and forwards do not do.
WITHOUT = {
    "gemma3": {"video", "both"},  # no video
    "glm4v": {"both"},  # the forward counts images and frames by the same token, and refuses
    "glm4v_moe": {"both"},
    "glm46v": {"both"},
    "smolvlm": {"both"},  # the frames overwrite the images' pixels
}
CASES = [(name, kind) for name in FAMILIES for kind in KINDS if kind not in WITHOUT.get(name, ())]


def encoded(processor, kind, texts=(QUESTION,), seed=0):
    """The processor's tensors for one row a text, all of this kind."""
    images, clips = KINDS[kind]
    kinds = ["image"] * images + ["video"] * clips
    prompts = [
        processor.apply_chat_template(message(text, *kinds), add_generation_prompt=True, tokenize=False)
        for text in texts
    ]
    media = {}
    if images:
        media["images"] = [[picture(56, 84 if i else 56, seed=10 * seed + i) for i in range(images)] for _ in texts]
    if clips:
        media["videos"] = [clip(4, 56, 56, seed=10 * seed + 5) for _ in texts]
        media["do_sample_frames"] = False
        media["video_metadata"] = [
            VideoMetadata(total_num_frames=8, fps=4.0, duration=2.0, frames_indices=[0, 2, 4, 6]) for _ in texts
        ]
    # The templates write the first token themselves.
    return processor(text=prompts, return_tensors="pt", padding=True, add_special_tokens=False, **media)


@torch.no_grad()
def log_probs(model, inputs, row=0):
    """(P, V) of one row's own tokens."""
    own = inputs["attention_mask"][row].bool()
    return model(**inputs).logits[row, own].log_softmax(-1)


@cache
def made(name):
    """One copy for the tests that change nothing."""
    return tiny(name)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_media_are_counted_seen_and_padded(name, kind, monkeypatch):
    model, processor = made(name).model, made(name).processor
    alone = encoded(processor, kind)
    features, inside = [], []

    def counted(method):
        def call(*args, **kwargs):
            inside.append(method)
            result = method(*args, **kwargs)
            inside.pop()
            if not inside:  # some families read clips with the method of images
                found = result.pooler_output
                features.extend([found] if isinstance(found, torch.Tensor) else found)
            return result

        return call

    with monkeypatch.context() as patched:
        for method in ("get_image_features", "get_video_features"):
            if hasattr(model.model, method):
                patched.setattr(model.model, method, counted(getattr(model.model, method)))
        expected = log_probs(model, alone)

    # As many placeholders as features.
    config = model.config
    ids = {config.image_token_id, getattr(config, "video_token_id", config.image_token_id)}
    placeholders = sum(int((alone["input_ids"] == token).sum()) for token in ids)
    assert placeholders == sum(found.numel() // found.shape[-1] for found in features)
    assert (placeholders > 0) == (kind != "text")

    # Other pixels, other log-probs.
    if kind != "text":
        other = encoded(processor, kind, seed=1)
        assert torch.equal(other["input_ids"], alone["input_ids"])
        assert (log_probs(model, other)[-1] - expected[-1]).abs().max() > 1e-3

    # The shorter of two rows, padded on the left.
    both = encoded(processor, kind, texts=(QUESTION, LONGER))
    assert both["attention_mask"][0, 0] == 0
    torch.testing.assert_close(log_probs(model, both), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_four_tokens_are_generated(name):
    inputs = encoded(made(name).processor, "image")
    tokens = made(name).model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, inputs["input_ids"].shape[1] + 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_auto_classes_load_what_is_saved(name, tmp_path):
    own, folder = made(name), saved(name, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is type(own.model)
    assert type(processor) is type(own.processor)
    first, second = (encoded(each, "image") for each in (own.processor, processor))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
    loaded = model.state_dict()
    for key, value in own.model.state_dict().items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_is_small_and_the_callers_own(name):
    model, processor = tiny(name).model, tiny(name).processor
    next(model.parameters()).data.zero_()
    assert next(made(name).model.parameters()).abs().sum() > 0
    assert processor is made(name).processor
    assert processor.tokenizer.padding_side == "left"
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
