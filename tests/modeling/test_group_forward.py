"""The group forward against one row per completion: log-probs, entropies, gradients, attention, hidden states."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from tests.helpers import message
from trl_perception.assets import model_path
from trl_perception.media import PromptPreparer
from trl_perception.modeling import (
    AttentionTap,
    HiddenTap,
    attention_rows,
    group_forward,
    packing_unsupported_reason,
    row_forward,
    shared_runs,
    token_ratio,
)

WIDTH = 6
LENGTHS = (6, 3, 1, 5, 0, 6, 4, 2)  # of the completions in order, one of them empty
TEXT = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attn_implementation": "sdpa",
}


def fused(model):
    torch.manual_seed(0)
    model.train()
    add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
    return model


def qwen2_5_vl(**kwargs):
    return AutoModelForImageTextToText.from_pretrained(model_path("tiny"), **kwargs)


def qwen2_vl():
    ours = qwen2_5_vl().config
    torch.manual_seed(1)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14, "mlp_ratio": 2}
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {**TEXT, "vocab_size": ours.get_text_config().vocab_size, "rope_parameters": rope}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, **{name: getattr(ours, name) for name in tokens})
    )


def qwen3():
    torch.manual_seed(2)
    return Qwen3ForCausalLM(Qwen3Config(**TEXT))


def llama():
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**TEXT))


@pytest.fixture(scope="module")
def prompts(clips, pictures):
    """Prompts of different length and kind."""
    rows = [
        {"prompt": message("Which colour?", "video"), "videos": clips[:1]},
        {"prompt": message("Which one of these two, and why?", "video", "image"), "videos": clips[1:2], "images": pictures[:1]},
        {"prompt": message("Say red."), "videos": [], "images": []},
        {"prompt": message("Colour?", "image"), "images": pictures[1:2]},
    ]  # fmt: skip
    return PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")))(rows)


def batch(prompts, runs):
    """Rows of the prompts, as many each as `runs` says: input_ids, attention_mask, labels, visual inputs."""
    generator = torch.Generator().manual_seed(4)
    width = max(len(prompt.input_ids) for prompt in prompts)
    ids, mask, visuals = [], [], []
    for prompt, count in zip(prompts, runs, strict=True):
        for _ in range(count):
            length = LENGTHS[len(ids) % len(LENGTHS)]
            padding = [0] * (width - len(prompt.input_ids))
            completion = torch.randint(10, 150, (WIDTH,), generator=generator).tolist()
            ids.append([*padding, *prompt.input_ids, *completion])
            mask.append([*padding, *[1] * len(prompt.input_ids), *[1] * length, *[0] * (WIDTH - length)])
            visuals.append(prompt.visual)
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-WIDTH] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, visuals


def both(model, prompts, runs, text_only=False):
    """(log-probs, entropies, gradients) of the plain and of the group forward."""
    inputs, visuals = batch(prompts, runs)
    firsts = [sum(runs[:i]) for i in range(len(runs))]
    weights = torch.randn(len(visuals), WIDTH, generator=torch.Generator().manual_seed(5))
    results = []
    for packed in (False, True):
        model.zero_grad()
        if packed:
            once = [None if text_only else visuals[row] for row in firsts]
            output = group_forward(model, runs=runs, visuals=once, completion_width=WIDTH, **inputs, fused_lm_head=True)
        elif text_only:
            output = model(**inputs, fused_lm_head=True)
        else:
            output = row_forward(model, visuals=visuals, completion_width=WIDTH, **inputs, fused_lm_head=True)
        logps, entropies = output.log_probs[:, -WIDTH:], output.entropy[:, -WIDTH:]
        (logps * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((logps.detach(), entropies.detach(), gradients))
    return results


def assert_alike(plain, packed, tolerance=1e-4):
    for ours, theirs in zip(packed[:2], plain[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance / 4, rtol=tolerance)
    assert packed[2].keys() == plain[2].keys()
    assert packed[2]
    for name, gradient in plain[2].items():
        distance = (packed[2][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert distance < tolerance, f"{name}: {distance}"


@pytest.mark.parametrize("runs", [[4, 2, 3, 1], [1, 1, 1, 1], [2, 2, 2, 2]], ids=str)
def test_media_text_unequal_lengths_and_several_prompts(prompts, runs):
    assert_alike(*both(fused(qwen2_5_vl()), prompts, runs))


@pytest.mark.parametrize("which", range(4), ids=["video", "several", "text", "image"])
def test_each_kind_alone(prompts, which):
    assert_alike(*both(fused(qwen2_5_vl()), [prompts[which]], [8]))


def test_gradients_reach_tower_and_decoder(prompts):
    _, (_, _, gradients) = both(fused(qwen2_5_vl()), prompts[:1], [4])
    assert any("visual.blocks" in name and value.norm() > 0 for name, value in gradients.items())
    assert any("language_model.layers" in name and value.norm() > 0 for name, value in gradients.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(prompts, reentrant):
    model = fused(qwen2_5_vl())
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_alike(*both(model, prompts, [4, 2, 1, 1]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters(prompts, checkpointing):
    model = fused(qwen2_5_vl())
    config = LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    plain, packed = both(model, prompts, [3, 2, 2, 1])
    assert all("lora" in name for name in packed[2])
    assert_alike(plain, packed)


def test_the_older_family(prompts):
    assert_alike(*both(fused(qwen2_vl()), prompts, [3, 2, 1, 2]))


@pytest.mark.parametrize("build", [qwen3, llama])
def test_text_models(prompts, build):
    class Prompt:
        visual = None

        def __init__(self, ids):
            self.input_ids = ids

    texts = [Prompt([11, 12, 13, 14, 15, 16, 17]), Prompt([21, 22, 23]), Prompt([31])]
    assert_alike(*both(fused(build()), texts, [4, 3, 2], text_only=True))


def test_bfloat16_stays_within_what_reordering_does(prompts):
    """In bf16 the packed row may differ from padded rows as much as padded rows do from rows with other padding."""
    model = fused(qwen2_5_vl(dtype=torch.bfloat16))
    plain, packed = both(model, prompts[:2], [4, 4])
    exact, _ = both(fused(qwen2_5_vl()), prompts[:2], [4, 4])

    def error(result):
        return (result[0] - exact[0]).abs().mean().item()

    assert error(packed) < 1.5 * error(plain)
    assert (packed[0] - plain[0]).abs().mean() < 2 * error(plain)


def test_a_tap_sees_the_rows(prompts):
    model = fused(qwen2_5_vl())
    runs, rows = [4, 2, 1, 1], slice(-WIDTH - 1, -1)
    inputs, visuals = batch(prompts, runs)

    def reduce(layers, mask):
        return attention_rows(layers[-1], rows, mask), mask

    found = []
    for packed in (False, True):
        attention, hidden = AttentionTap(model, reduce), HiddenTap(model, lambda states: states.at(rows))
        with torch.no_grad(), attention, hidden:
            if packed:
                firsts = [visuals[sum(runs[:i])] for i in range(len(runs))]
                group_forward(model, runs=runs, visuals=firsts, completion_width=WIDTH, **inputs, fused_lm_head=True)
            else:
                row_forward(model, visuals=visuals, completion_width=WIDTH, **inputs, fused_lm_head=True)
        found.append((*attention.results[0], hidden.results[0]))
    (plain_rows, plain_mask, plain_states), (packed_rows, packed_mask, packed_states) = found
    counted = inputs["attention_mask"][:, rows].bool()
    assert torch.equal(plain_mask, packed_mask)
    torch.testing.assert_close(packed_rows[counted], plain_rows[counted], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(packed_states[counted], plain_states[counted], atol=1e-4, rtol=1e-4)
    assert packed_rows[counted].sum(-1).sub(1).abs().max() < 1e-5


def test_runs_are_neighbours_with_one_prompt_and_one_set_of_media():
    one, other = object(), object()
    ids = torch.tensor([[0, 1, 2], [0, 1, 2], [7, 1, 2], [5, 1, 2], [5, 1, 2], [5, 1, 2]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    # padding may hold anything (row 2), media part rows 4 and 5
    assert shared_runs(ids, mask, None) == [3, 3]
    assert shared_runs(ids, mask, [one, one, one, one, one, other]) == [3, 2, 1]


def test_token_ratio_by_hand():
    # P 1039, R 64, G 8: 8 * 1103 = 8824 tokens against 1038 + 8 * 65 = 1558
    assert token_ratio([1039] * 8, [64] * 8, [8]) == 8824 / 1558
    # two prompts of 10 and 4, completions of 2 and 1: 2 * 12 = 24 tokens against (9 + 3) + (3 + 2) = 17
    assert token_ratio([10, 4], [2, 1], [1, 1]) == 24 / 17


def test_what_cannot_be_packed_says_why():
    assert packing_unsupported_reason(qwen2_5_vl()) is None
    assert packing_unsupported_reason(qwen2_vl()) is None
    assert packing_unsupported_reason(llama()) is None
    assert "'eager'" in packing_unsupported_reason(qwen2_5_vl(attn_implementation="eager"))
    windowed = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=4))
    assert "sliding window" in packing_unsupported_reason(windowed)
    model = qwen2_5_vl()
    model.config.model_type = "llava_onevision"
    assert "not among the families" in packing_unsupported_reason(model)


def test_a_model_that_goes_around_the_interface_is_caught(prompts, monkeypatch):
    model = fused(qwen2_5_vl())
    layer = model.model.language_model.layers[0].self_attn
    around = copy.copy(type(layer).forward)

    def forward(self, hidden_states, **kwargs):
        return (hidden_states, None) if self is layer else around(self, hidden_states, **kwargs)

    monkeypatch.setattr(type(layer), "forward", forward)
    with pytest.raises(RuntimeError, match="of 4 layers followed"):
        both(model, prompts[:1], [2])


@pytest.mark.slow
def test_flex_attention_takes_the_rule_as_a_block_mask():
    """Forward only: FlexAttention has no backward on a CPU, and transformers refuses it for Qwen2.5-VL."""

    class Prompt:
        visual = None

        def __init__(self, ids):
            self.input_ids = ids

    torch._dynamo.reset()  # sizes compiled before would be treated as dynamic
    texts = [Prompt([11, 12, 13, 14, 15, 16, 17]), Prompt([21, 22, 23])]
    inputs, _ = batch(texts, [4, 3])
    model = fused(qwen3()).eval()
    with torch.no_grad():
        plain = model(**inputs, fused_lm_head=True).log_probs[:, -WIDTH:]
        model.set_attn_implementation("flex_attention")
        common = {"runs": [4, 3], "visuals": [None, None], "completion_width": WIDTH}
        packed = group_forward(model, **common, **inputs, fused_lm_head=True).log_probs
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)
