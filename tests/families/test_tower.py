"""Processes that share parameters: every forward runs the vision tower once, and the same modules in the same order."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from tests.families.rows import prepared
from tests.families.test_forwards import COMPLETION, OURS
from tests.families.tiny import tiny
from trl_perception.modeling import OneTowerRun, row_forward, zeroed
from trl_perception.modeling.vision import family_of_model

# Kinds of the prompts of a batch. "both" has a clip before its picture; in the last batch pictures come first.
BATCHES = {
    "text": ("text",),
    "image": ("image",),
    "video": ("video",),
    "both": ("both",),
    "mixed": ("images", "text", "video"),
}
each_family = pytest.mark.parametrize("name", OURS)


@dataclass
class Run:
    """What a forward and its backward give, and what they run.

    Args:
        log_probs: (B,T,V). gradients: by name, of the parameters that have one.
        modules: names of the modules that were called, in order. ready: names of parameters in the order of their gradients.
    """

    log_probs: Tensor
    gradients: dict[str, Tensor]
    modules: list[str]
    ready: list[str]


def run(model: nn.Module, prompts, visuals=None) -> Run:
    width = max(len(prompt.input_ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), width + len(COMPLETION), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt.input_ids)
        ids[row, start:] = torch.cat([torch.tensor(prompt.input_ids), COMPLETION])
        mask[row, start:] = 1
    modules, ready = [], []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: modules.append(name))
        for name, module in model.named_modules()
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))
        for name, parameter in model.named_parameters()
    ]
    model.zero_grad()
    logits = row_forward(
        model,
        visuals=[prompt.visual for prompt in prompts] if visuals is None else visuals,
        completion_width=len(COMPLETION),
        input_ids=ids,
        attention_mask=mask,
    ).logits
    log_probs = torch.log_softmax(logits[:, width - 1 : -1].float(), -1)
    log_probs.gather(-1, COMPLETION.expand(len(prompts), -1)[..., None]).sum().backward()
    for handle in handles:
        handle.remove()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Run(log_probs.detach(), gradients, modules, ready)


def vision_names(model: nn.Module) -> tuple[str, set[str]]:
    """The name of the tower, and the names of its parameters and of its mergers'."""
    family, names = family_of_model(model), {module: name for name, module in model.named_modules()}
    tower = family.tower(model.model)
    parts = [tower, *family.mergers(model.model)]
    return names[tower], {f"{names[part]}.{name}" for part in parts for name, _ in part.named_parameters()}


@each_family
def test_every_forward_runs_the_tower_once_at_the_same_numbers(name):
    family = tiny(name)
    tower, parameters = vision_names(family.model)
    batches = {
        batch: [prepared(family, kind, seed) for seed, kind in enumerate(kinds)] for batch, kinds in BATCHES.items()
    }
    apart = {batch: run(family.model, prompts) for batch, prompts in batches.items()}
    OneTowerRun(family.model)
    once = {batch: run(family.model, prompts) for batch, prompts in batches.items()}
    for batch, found in once.items():
        expected = apart[batch]
        assert found.modules.count(tower) == 1
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)
        assert set(found.gradients) >= parameters | set(expected.gradients)
        for parameter, gradient in found.gradients.items():
            wanted = expected.gradients.get(parameter, torch.zeros_like(gradient))
            worst = max(1.0, wanted.abs().max().item())
            torch.testing.assert_close(gradient, wanted, atol=1e-4 * worst, rtol=0)
        assert found.modules == once["text"].modules
        assert found.ready == once["text"].ready


@each_family
def test_the_tower_runs_once_where_features_are_zeros(name):
    family = tiny(name)
    tower, _ = vision_names(family.model)
    prompt = prepared(family, "both")
    visuals = [zeroed(family.model, torch.tensor(prompt.input_ids), prompt.visual).visual]
    expected = run(family.model, [prompt], visuals)
    OneTowerRun(family.model)
    found = run(family.model, [prompt], visuals)
    assert (expected.modules.count(tower), found.modules.count(tower)) == (0, 1)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    assert found.modules == run(family.model, [prompt]).modules


def test_pictures_and_frames_of_different_padding_go_through_the_tower_together():
    """84x112 pixels are 48 patches, and the processor pads pictures and frames to 280: here the picture is not padded."""
    family = tiny("gemma4")
    prompt = prepared(family, "both")
    visual, patches = prompt.visual, 48
    assert (visual.image_position_ids[0, :, 0] >= 0).sum() == patches
    bare = {key: getattr(visual, key)[:, :patches] for key in ("pixel_values", "image_position_ids")}
    expected = run(family.model, [prompt])
    OneTowerRun(family.model)
    found = run(family.model, [prompt], [replace(visual, **bare)])
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    assert found.gradients.keys() == expected.gradients.keys()
