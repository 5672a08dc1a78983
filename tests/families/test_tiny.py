"""The tiny models do what their families do: media count, are seen, are padded and are generated from."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from tests.families.tiny import FAMILIES, clip, picture, saved, tiny
from tests.helpers import message

QUESTION = "Which comes first?"
LONGER = "What is the colour of the scene? Answer in one word."
# Images and clips of each kind of row, in the order of the prompt.
KINDS = {"text": (0, 0), "image": (1, 0), "images": (2, 0), "video": (0, 1), "both": (1, 1)}
# What the families' own processors and forwards do not do.
WITHOUT = {
    "gemma3": {"video", "both"},  # no video
    "glm4v": {"both"},  # the forward counts images and frames by the same token, and refuses
    "glm46v": {"both"},
    "smolvlm": {"both"},  # the frames overwrite the images' pixels
}
CASES = [(name, kind) for name in FAMILIES for kind in KINDS if kind not in WITHOUT.get(name, ())]
MEDIA = [(name, kind) for name, kind in CASES if kind != "text"]


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


@pytest.mark.parametrize(("name", "kind"), MEDIA)
def test_placeholders_are_as_many_as_features(name, kind, monkeypatch):
    made = tiny(name)
    inputs = encoded(made.processor, kind)
    rows, depth = [], []

    def counted(method):
        def call(*args, **kwargs):
            depth.append(method)
            features = method(*args, **kwargs)
            depth.pop()
            if not depth:  # some families read videos with the method of images
                found = features.pooler_output
                rows.extend([found] if isinstance(found, torch.Tensor) else found)
            return features

        return call

    for method in ("get_image_features", "get_video_features"):
        if hasattr(made.model.model, method):
            monkeypatch.setattr(made.model.model, method, counted(getattr(made.model.model, method)))
    log_probs(made.model, inputs)
    config = made.model.config
    ids = {config.image_token_id, getattr(config, "video_token_id", config.image_token_id)}
    placeholders = sum(int((inputs["input_ids"] == token).sum()) for token in ids)
    assert placeholders == sum(found.numel() // found.shape[-1] for found in rows) > 0


@pytest.mark.parametrize(("name", "kind"), MEDIA)
def test_other_pixels_change_the_log_probs(name, kind):
    made = tiny(name)
    first, second = (encoded(made.processor, kind, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(first["input_ids"], second["input_ids"], rtol=0, atol=0)
    last = [log_probs(made.model, inputs)[-1] for inputs in (first, second)]
    assert (last[0] - last[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_left_padded_row_has_the_log_probs_of_the_row_alone(name, kind):
    made = tiny(name)
    both = encoded(made.processor, kind, texts=(QUESTION, LONGER))
    assert both["attention_mask"][0, 0] == 0
    for row, text in enumerate((QUESTION, LONGER)):
        alone = log_probs(made.model, encoded(made.processor, kind, texts=(text,)))
        torch.testing.assert_close(log_probs(made.model, both, row), alone, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_four_tokens_are_generated(name):
    made = tiny(name)
    inputs = encoded(made.processor, "image")
    tokens = made.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, inputs["input_ids"].shape[1] + 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_auto_classes_load_what_is_saved(name, tmp_path):
    made, folder = tiny(name), saved(name, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is type(made.model)
    assert type(processor) is type(made.processor)
    first, second = (encoded(each, "image") for each in (made.processor, processor))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
    torch.testing.assert_close(log_probs(model, second), log_probs(made.model, first), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_is_the_callers_own(name):
    made, other = tiny(name), tiny(name)
    parameter = next(made.model.parameters())
    parameter.data.zero_()
    assert next(other.model.parameters()).abs().sum() > 0
    assert sum(p.numel() for p in made.model.parameters()) < 1_500_000
    assert made.processor is other.processor
    assert made.processor.tokenizer.padding_side == "left"
    assert not made.model.training
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
