"""Recomputed attention rows against eager `output_attentions`, in every mode of the model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trl_perception.assets import model_path
from trl_perception.modeling.attention import AttentionTap, attention_rows, pooled_rows

ROWS = slice(-6, None)


def batch(vocabulary=200):
    """Two rows of 20 and 14 tokens, left-padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, vocabulary, (2, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    return {"input_ids": ids, "attention_mask": mask}


def last_rows(layers, mask):
    return attention_rows(layers[-1], ROWS, mask)


def tiny(implementation):
    return AutoModelForImageTextToText.from_pretrained(model_path("tiny"), attn_implementation=implementation)


def eager_rows(model, inputs, layer=-1):
    """Head-averaged rows from the eager map, on the positions that are not padding."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions[layer].mean(1)[:, ROWS]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_rows_equal_the_eager_map(implementation):
    model, inputs = tiny(implementation), batch()
    with torch.no_grad(), AttentionTap(model, last_rows) as tap:
        tapped = model(**inputs).logits
    (rows,) = tap.take()
    torch.testing.assert_close(rows, eager_rows(tiny("eager"), inputs), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(
            model(**inputs).logits, tapped
        )  # the tap does not change the forward and is removed completely


def test_each_of_several_layers_equals_its_map():
    model, inputs = tiny("sdpa"), batch()
    with torch.no_grad(), AttentionTap(model, lambda layers, mask: layers, layers=3) as tap:
        model(**inputs)
    (layers,) = tap.take()
    depth = len(model.model.language_model.layers)
    assert [layer.layer for layer in layers] == [depth - 3, depth - 2, depth - 1]
    for layer in layers:
        rows = attention_rows(layer, ROWS, inputs["attention_mask"])
        torch.testing.assert_close(rows, eager_rows(tiny("eager"), inputs, layer.layer), atol=1e-6, rtol=1e-5)


FAMILIES = {
    "query and key norms": (Qwen3ForCausalLM, Qwen3Config, {}),
    "softcap": (Gemma2ForCausalLM, Gemma2Config, {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}),
    "sliding window": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_other_families(family):
    model_class, config_class, options = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        attn_implementation="eager",
        **options,
    )
    model, inputs = model_class(config).eval(), batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform attention
    with torch.no_grad(), AttentionTap(model, last_rows, layers=[1]) as tap:
        model(**inputs)
    torch.testing.assert_close(tap.take()[0], eager_rows(model, inputs), atol=1e-6, rtol=1e-5)


@pytest.mark.slow  # compiles
def test_rows_while_flex_attention_runs():
    torch._dynamo.reset()  # sizes compiled before would be treated as dynamic
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    model, inputs = Qwen3ForCausalLM(config).eval(), batch()
    expected = eager_rows(model, inputs)
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), AttentionTap(model, last_rows) as tap:
        model(**inputs)
    torch.testing.assert_close(tap.take()[0], expected, atol=1e-6, rtol=1e-5)


def test_default_layers_pass_over_sliding_windows():
    config = Gemma2Config(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, layer_types=["full_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    tap = AttentionTap(Gemma2ForCausalLM(config), last_rows, layers=1)
    assert list(tap.layer_of.values()) == [1]


@pytest.mark.parametrize("way", ["plain", "checkpointed", "peft", "peft checkpointed"])
def test_gradients_through_rows_equal_eager_gradients(way):
    """d/dw of sum(rows * r) for random r, against the same through the eager map."""
    inputs = batch()
    weight = torch.rand(2, 6, 20, generator=torch.Generator().manual_seed(1))

    def build(implementation):
        torch.manual_seed(0)
        model = tiny(implementation).train()
        if "peft" in way:
            config = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
            model = get_peft_model(model, config)
        return model

    eager = build("eager")
    (eager(**inputs, output_attentions=True).attentions[-1].mean(1)[:, ROWS] * weight).sum().backward()
    model = build("sdpa")
    if "checkpointed" in way:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if "peft" in way:
            model.enable_input_require_grads()
    with AttentionTap(model, last_rows) as tap:
        model(**inputs)
    (tap.take()[0] * weight).sum().backward()
    compared = 0
    for (name, mine), (_, theirs) in zip(model.named_parameters(), eager.named_parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.abs().max() > 0:
            assert mine.grad is not None, name
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-3)
            compared += 1
    assert compared > 4


def test_pooled_rows_by_hand_and_against_the_map():
    model, inputs = tiny("sdpa"), batch()
    frames = torch.full((20,), -1)
    frames[8:10], frames[10:13] = 0, 1

    def reduce(layers, mask):
        return pooled_rows(layers, ROWS, mask, frames)

    with torch.no_grad(), AttentionTap(model, reduce, layers=2) as tap:
        model(**inputs)
    (pooled,) = tap.take()
    eager = tiny("eager")
    maps = [eager_rows(eager, inputs, layer) for layer in (-2, -1)]
    # frame 0 is the mean over tokens 8 and 9, frame 1 over 10 to 12; then the mean over two layers
    expected = sum(torch.stack([m[..., 8:10].mean(-1), m[..., 10:13].mean(-1)], -1) for m in maps) / 2
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-5)


def test_rows_inside_a_forward_in_mixed_precision_are_those_outside_it():
    model, inputs = tiny("sdpa"), batch()
    frames = torch.full((20,), -1)
    frames[8:10], frames[10:13] = 0, 1

    def both(layers, mask):
        return attention_rows(layers[-1], ROWS, mask), pooled_rows(layers, ROWS, mask, frames)

    with torch.no_grad(), AttentionTap(model, lambda *caught: (caught, both(*caught))) as tap:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**inputs)
        ((caught, inside),) = tap.take()
        outside = both(*caught)
    for found, expected in zip(inside, outside, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_results_come_one_for_each_forward_and_are_forgotten():
    model, inputs = tiny("sdpa"), batch()
    with torch.no_grad(), AttentionTap(model, last_rows) as tap:
        model(**inputs)
        model(**{key: value[:1] for key, value in inputs.items()})
        assert [len(rows) for rows in tap.take()] == [2, 1]
        assert tap.take() == []


@pytest.mark.parametrize("first_to_close", [0, 1])
def test_taps_may_close_in_any_order(first_to_close):
    model, inputs = tiny("eager"), batch()
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    taps = [AttentionTap(model, lambda layers, mask: len(layers), layers=count) for count in (1, 2)]
    for tap in taps:
        tap.__enter__()
    closed, still_open = taps[first_to_close], taps[1 - first_to_close]
    closed.__exit__()
    model(**inputs)
    assert closed.take() == []
    assert still_open.take() == [2 - first_to_close]
    still_open.__exit__()
    assert before == ALL_ATTENTION_FUNCTIONS._local_mapping


def test_what_cannot_be_tapped_is_refused_by_name():
    with pytest.raises(ValueError, match="99 attention layers are asked for"):
        AttentionTap(tiny("sdpa"), last_rows, layers=99)
    with pytest.raises(ValueError, match=r"Layers \[77\] have no softmax self-attention"):
        AttentionTap(tiny("sdpa"), last_rows, layers=[77])
