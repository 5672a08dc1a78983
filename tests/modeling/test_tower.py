"""One run of the tower per forward, with the same numbers and gradients as one run for each kind of media."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.helpers import message
from trl_perception.assets import model_path
from trl_perception.media import PromptPreparer
from trl_perception.modeling import OneTowerRun, row_forward, zeroed
from trl_perception.modeling.cache import CACHE


@pytest.fixture(scope="module")
def prompts(clips, pictures):
    rows = {
        "text": {"prompt": message("Say red.")},
        "image": {"prompt": message("Which?", "image"), "images": pictures[:1]},
        "video": {"prompt": message("Which?", "video"), "videos": clips[:1]},
        "both": {
            "prompt": message("Which?", "video", "image", "video", "image"),
            "videos": clips[:2],
            "images": pictures[:2],
        },
    }
    preparer = PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")))
    return dict(zip(rows, preparer(list(rows.values())), strict=True))


def forward(model, prompt):
    """Logits, gradients by name, and how often the tower was run."""
    runs = []
    handle = model.model.visual.register_forward_hook(lambda *given: runs.append(1))
    ids = torch.tensor([prompt.input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = row_forward(model, visuals=[prompt.visual], completion_width=0, **inputs).logits
    model.zero_grad()
    logits.square().mean().backward()
    handle.remove()
    return (
        logits.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        len(runs),
    )


@pytest.mark.parametrize("kind", ["text", "image", "video", "both"])
def test_every_forward_runs_the_tower_once_at_the_same_numbers(prompts, kind):
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    logits, gradients, runs = forward(model, prompts[kind])
    assert runs == {"text": 0, "image": 1, "video": 1, "both": 2}[kind]
    OneTowerRun(model)
    once, of_once, runs = forward(model, prompts[kind])
    assert runs == 1
    torch.testing.assert_close(once, logits, rtol=1e-4, atol=1e-4)
    assert set(of_once) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, gradient in of_once.items():
        torch.testing.assert_close(gradient, gradients.get(name, torch.zeros_like(gradient)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "video", "both"])
def test_zeroed_features_stay_zeros_while_the_tower_is_run(prompts, kind):
    model, prompt = AutoModelForImageTextToText.from_pretrained(model_path("tiny")), prompts[kind]
    zeros = zeroed(model, torch.tensor(prompt.input_ids), prompt.visual).visual
    apart = replace(prompt, visual=zeros)
    logits, _, runs = forward(model, apart)
    assert runs == 0
    OneTowerRun(model)
    once, _, runs = forward(model, apart)
    assert runs == 1
    torch.testing.assert_close(once, logits, rtol=1e-5, atol=1e-5)


def test_where_nobody_waits_the_tower_is_run_as_needed(prompts):
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    tower = OneTowerRun(model)
    with tower.pause():
        assert forward(model, prompts["text"])[2] == 0
    assert forward(model, prompts["text"])[2] == 1
    with torch.no_grad():
        ids = torch.tensor([prompts["text"].input_ids])
        cache = model(input_ids=ids, use_cache=True)[CACHE]
        runs = []
        model.model.visual.register_forward_hook(lambda *given: runs.append(1))
        model(input_ids=ids[:, :1], **{CACHE: cache})  # a token after its prompt
    assert not runs
