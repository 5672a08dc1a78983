"""Two ways of one part of a step, in pairs: update, rollout, decoding, segments of a packed row, attention rows."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import softmax
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer
from trl.trainer.utils import add_fused_lm_head

from benchmarks.families import FAMILIES, TOKENS_A_CELL, video_prompt
from benchmarks.measure import ratios
from trl_perception.media import VisualInputs
from trl_perception.modeling import (
    LayerAttention,
    attention_rows,
    group_forward,
    packed_attention,
    prefill_once,
    row_forward,
    token_ratio,
)
from trl_perception.modeling.cache import CACHE


def qwen2_5_vl_prompt(model, cells: int, generator: torch.Generator) -> tuple[torch.Tensor, VisualInputs]:
    """Ids (P,) and visual inputs of a prompt with one video."""
    video = torch.full((cells * TOKENS_A_CELL,), model.config.video_token_id)
    before, after = (torch.randint(20, 500, (size,), generator=generator) for size in (8, 7))
    prompt = torch.cat([before, video, after])
    return prompt, VisualInputs(
        "benchmark",
        (prompt == model.config.video_token_id).long() * 2,
        pixel_values_videos=torch.randn(cells * 4 * TOKENS_A_CELL, 1176, generator=generator),
        video_grid_thw=torch.tensor([[cells, 16, 16]]),
        second_per_grid_ts=torch.tensor([1.0]),
    )


class Group:
    """A prompt with one video of `cells` temporal cells, G completions of R random tokens."""

    def __init__(self, model, cells: int, generations: int, length: int, device: str):
        generator = torch.Generator().manual_seed(0)
        family = model.config.model_type
        if family in FAMILIES:
            prompt, visual = video_prompt(family, cells, generator)
        else:
            prompt, visual = qwen2_5_vl_prompt(model, cells, generator)
        self.prompt, self.visual = prompt.to(device), visual.to(device)
        self.generations, self.length = generations, length
        completions = torch.randint(20, 500, (generations, length), generator=generator).to(device)
        self.ids = torch.cat([self.prompt.expand(generations, -1), completions], dim=1)
        self.labels = self.ids.clone()
        self.labels[:, : len(self.prompt)] = -100
        self.inputs = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "labels": self.labels}

    @property
    def token_ratio(self) -> float:
        count = self.generations
        return token_ratio([len(self.prompt)] * count, [self.length] * count, [count])


def update(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """Log-probs, a policy-gradient loss, and backward."""
    advantages = torch.linspace(-1, 1, group.generations, device=device)[:, None]
    common = {"completion_width": group.length, **group.inputs, "fused_lm_head": True}
    found = {}

    def learn(name, output):
        logps = output.log_probs[:, -group.length :]
        model.zero_grad(set_to_none=True)
        (-advantages * torch.exp(logps - logps.detach())).sum().backward()
        found[name] = [p.grad for p in model.parameters() if p.grad is not None]

    def slow():
        learn("slow", row_forward(model, visuals=[group.visual] * group.generations, **common))

    def fast():
        learn("fast", group_forward(model, runs=[group.generations], visuals=[group.visual], **common))

    result = ratios(slow, fast, device, repeats)
    plain, packed = (torch.cat([of_one.double().flatten() for of_one in found[name]]) for name in ("slow", "fast"))
    result["gradient_difference"] = ((plain - packed).norm() / plain.norm()).item()
    result["token_ratio"] = group.token_ratio
    return result


def segments(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """The packed update with the prefix read where it stands, against a copy of its keys a segment, under a mask."""
    labels = {"completion_width": group.length, **group.inputs, "fused_lm_head": True}

    def learn():
        model.zero_grad(set_to_none=True)
        group_forward(model, runs=[group.generations], visuals=[group.visual], **labels).log_probs.sum().backward()

    def joined():
        with _no_merging():
            learn()

    return ratios(joined, learn, device, repeats)


@contextmanager
def _no_merging() -> Iterator[None]:
    can_merge = packed_attention.can_merge
    packed_attention.can_merge = lambda *tensors: False
    try:
        yield
    finally:
        packed_attention.can_merge = can_merge


def rollout(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """Sampling R tokens for each of G completions."""
    count, width = group.generations, len(group.prompt)
    ids = group.ids[:, :width]
    config = sampling_of(group.length)

    def sample(share: int):
        with torch.no_grad(), prefill_once(model, [group.visual] * count, share):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)

    return ratios(lambda: sample(1), lambda: sample(count), device, repeats)


def decoding(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """R tokens for each of G completions after the prefill: over one copy of the prompt's keys, against one a completion."""
    generate, count, width, found = model.generate, group.generations, len(group.prompt), {}

    def measured(**inputs):
        if CACHE not in inputs:  # the prefill
            return generate(**inputs)

        def decode(layer_of):
            cache = copy.copy(inputs[CACHE])
            cache.layers = [layer_of(layer) for layer in cache.layers]
            return generate(**{**inputs, CACHE: cache})

        found.update(ratios(lambda: decode(_repeated), lambda: decode(copy.copy), device, repeats))
        return inputs["input_ids"]

    def _repeated(layer):
        repeated = DynamicLayer()
        repeated.update(*(part.repeat_interleave(count, 0) for part in (layer.prefix_keys, layer.prefix_values)))
        return repeated

    model.generate = measured
    with torch.no_grad(), prefill_once(model, [group.visual] * count, count):
        ids = group.ids[:, :width]
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampling_of(group.length))
    return found


def sampling_of(length: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=length, min_new_tokens=length, do_sample=True, pad_token_id=0, eos_token_id=1
    )


def rows_of_one_layer(
    device: str, repeats: int, *, heads=16, groups=2, dim=128, keys=4096, rows=256
) -> dict[str, float]:
    """APPO's pooled attention of the last `rows` of `keys` positions, against the full eager map."""
    torch.manual_seed(0)
    query, key = torch.randn(1, heads, keys, dim, device=device), torch.randn(1, groups, keys, dim, device=device)
    layer = LayerAttention(layer=0, query=query, key=key, scaling=dim**-0.5)
    pool = torch.zeros(keys, 16, device=device)
    pool[: 16 * 200] = torch.eye(16, device=device).repeat_interleave(200, 0) / 200

    def eager():
        scores = query @ key.repeat_interleave(heads // groups, 1).transpose(2, 3) * layer.scaling
        hidden = torch.ones(keys, keys, dtype=torch.bool, device=device).triu(1)
        return softmax(scores.masked_fill(hidden, float("-inf")), -1).mean(1)[:, -rows:] @ pool

    def tapped():
        return attention_rows(layer, slice(-rows, None), None, pool)

    torch.testing.assert_close(tapped(), eager(), atol=1e-6, rtol=1e-4)
    return ratios(eager, tapped, device, repeats)


def prepare(model, device: str) -> None:
    """Make a model ready to learn, as trainers do."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.train()
    if device != "cpu":
        model.activation_checkpointing_enable({"use_reentrant": False})
