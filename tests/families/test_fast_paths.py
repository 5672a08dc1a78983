"""Every family: the group forward, the shared prefill and attention rows against their plain twins."""

import pytest
import torch
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from tests.families.reference import processor_inputs, with_completion
from tests.families.rows import prepared
from tests.families.test_forwards import COMPLETION, OURS
from tests.families.tiny import tiny
from trl_perception.modeling import (
    AttentionTap,
    attention_rows,
    group_forward,
    packing_unsupported_reason,
    prefill_once,
    row_forward,
    shared_prefill_unsupported_reason,
)

WIDTH, REPEATS = 6, 3
LENGTHS = (6, 3, 1, 5, 0, 6, 4, 2)  # of the completions in order, one of them empty
HYBRID, GEMMA = ("qwen3_5", "qwen3_5_moe"), ("gemma3", "gemma4", "gemma4_large")
PACKED = tuple(name for name in OURS if name not in GEMMA)
each_family = pytest.mark.parametrize("name", OURS)


def prompts_of(family):
    """Prompts of different length and kind."""
    kinds = {
        "video": "Which one?",
        "text": "Say red.",
        "both": "Which colour comes first of all, and why?",
        "images": "?",
    }
    return [prepared(family, kind, seed, text) for seed, (kind, text) in enumerate(kinds.items())]


def batch(prompts, runs):
    """Rows of the prompts, left-padded, as many each as `runs` says, with completions of different length."""
    generator = torch.Generator().manual_seed(4)
    width = max(len(prompt.input_ids) for prompt in prompts)
    ids, mask, visuals = [], [], []
    for prompt, count in zip(prompts, runs, strict=True):
        for _ in range(count):
            length, padding = LENGTHS[len(ids) % len(LENGTHS)], [0] * (width - len(prompt.input_ids))
            ids.append([*padding, *prompt.input_ids, *torch.randint(20, 250, (WIDTH,), generator=generator).tolist()])
            mask.append([*padding, *[1] * len(prompt.input_ids), *[1] * length, *[0] * (WIDTH - length)])
            visuals.append(prompt.visual)
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-WIDTH] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, visuals


@pytest.mark.parametrize("name", PACKED)
def test_the_group_forward_gives_the_same_scores_and_gradients(name):
    family = tiny(name)
    model = family.model
    assert packing_unsupported_reason(model) is None
    add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
    runs, found = [3, 2, 2, 1], []
    inputs, visuals = batch(prompts_of(family), runs)
    firsts = [visuals[sum(runs[:number])] for number in range(len(runs))]
    weights = torch.randn(len(visuals), WIDTH, generator=torch.Generator().manual_seed(5))
    for packed in (False, True):
        model.zero_grad()
        common = {"completion_width": WIDTH, "fused_lm_head": True, **inputs}
        if packed:
            output = group_forward(model, runs=runs, visuals=firsts, **common)
        else:
            output = row_forward(model, visuals=visuals, **common)
        scores = output.log_probs[:, -WIDTH:], output.entropy[:, -WIDTH:]
        ((scores[0] + 0.1 * scores[1]) * weights).sum().backward()
        gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
        found.append((*(part.detach() for part in scores), gradients))
    (plain, plain_entropy, plain_gradients), (packed, packed_entropy, packed_gradients) = found
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(packed_entropy, plain_entropy, atol=1e-4, rtol=0)
    assert plain_gradients.keys() == packed_gradients.keys()
    assert any("vis" in key for key in plain_gradients)
    largest = max(gradient.abs().max() for gradient in plain_gradients.values())
    for key, gradient in plain_gradients.items():
        assert (packed_gradients[key] - gradient).abs().max() <= 1e-4 * max(gradient.abs().max(), 1e-3 * largest), key


@pytest.mark.parametrize("name", GEMMA)
def test_where_rows_are_not_packed_the_reason_says_so(name):
    assert "sliding window" in packing_unsupported_reason(tiny(name).model)


@each_family
def test_one_prefill_a_prompt_gives_the_same_greedy_tokens(name):
    family = tiny(name)
    model = family.model
    prompts = prompts_of(family)
    settings = GenerationConfig(max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert shared_prefill_unsupported_reason(model, settings) is None
    inputs, visuals = batch(prompts, [REPEATS] * len(prompts))
    inputs = {key: inputs[key][:, :-WIDTH] for key in ("input_ids", "attention_mask")}
    seen, found = [], []
    hook = model.get_decoder().register_forward_hook(
        lambda m, a, output: seen.append(output.last_hidden_state.shape[:2])
    )
    for repeats in (REPEATS, 1):
        with torch.no_grad(), prefill_once(model, visuals, repeats):
            found.append(model.generate(**inputs, generation_config=settings))
    hook.remove()
    assert [rows for rows, _ in seen[:2]] == [len(prompts), len(visuals)]
    assert torch.equal(*found)
    completions = found[0][:, inputs["input_ids"].size(1) :].tolist()
    assert all(completions[row] == completions[row - row % REPEATS] for row in range(len(completions)))
    assert len({tuple(tokens) for tokens in completions}) > 2


@pytest.mark.parametrize("kind", ["video", "images"])
@each_family
def test_attention_rows_equal_the_eager_map(name, kind):
    family = tiny(name)
    prompt, rows = prepared(family, kind), slice(-len(COMPLETION), None)
    ids = torch.cat([torch.tensor(prompt.input_ids), COMPLETION])[None]
    with torch.no_grad(), AttentionTap(family.model, lambda layers, mask: layers, layers=2) as tap:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        row_forward(family.model, visuals=[prompt.visual], completion_width=len(COMPLETION), **inputs)
    (layers,) = tap.take()
    family.model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = with_completion(processor_inputs(family, prompt, kind), COMPLETION)
        maps = family.model(**plain, output_attentions=True).attentions
    full = [
        index for index, attention in enumerate(family.model.get_decoder().layers) if hasattr(attention, "self_attn")
    ]
    for layer in layers:
        expected = maps[full.index(layer.layer)].mean(1)[:, rows]
        torch.testing.assert_close(attention_rows(layer, rows, None), expected, atol=1e-6, rtol=0)
        assert not getattr(family.model.get_decoder().layers[layer.layer].self_attn, "sliding_window", None)
