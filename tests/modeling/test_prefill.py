"""One prefill per prompt against one per completion: the same tokens, greedy and sampled."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from tests.conftest import write_clip
from tests.helpers import message
from tests.trainers.reference import shaken
from trl_perception.assets import model_path
from trl_perception.media import PromptPreparer
from trl_perception.modeling import apply_position_rule, encode, prefill_once, shared_prefill_unsupported_reason
from trl_perception.modeling.cache import CACHE

REPEATS = 4


@pytest.fixture(scope="module")
def prompts(clips, pictures):
    """Prompts of different length, so that a batch is left-padded."""
    rows = [
        {"prompt": message("Which colour?", "video"), "videos": clips[:1]},
        {"prompt": message("Say red."), "videos": [], "images": []},
        {"prompt": message("Which?", "video", "image"), "videos": clips[1:2], "images": pictures[:1]},
    ]
    return PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")))(rows)


def padded(prompts):
    width = max(len(ids) for ids in prompts)
    rows = [ids for ids in prompts for _ in range(REPEATS)]
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def config(**options):
    return GenerationConfig(max_new_tokens=12, pad_token_id=0, eos_token_id=None, **options)


def completions(model, prompts, repeats, seed=0, visuals=None, at_once=None, **options):
    if visuals is None:
        visuals = [prompt.visual for prompt in prompts for _ in range(REPEATS)]
    inputs = padded([prompt.input_ids for prompt in prompts])
    torch.manual_seed(seed)
    with torch.no_grad(), prefill_once(model, visuals, repeats, at_once):
        return model.generate(**inputs, generation_config=config(**options))


def forwards(model):
    """Counts (rows, tokens) of every forward from now on."""
    seen = []
    model.get_decoder().register_forward_hook(
        lambda module, args, kwargs, output: seen.append(tuple(output.last_hidden_state.shape[:2])), with_kwargs=True
    )
    return seen


@pytest.fixture
def model():
    return AutoModelForImageTextToText.from_pretrained(model_path("tiny")).eval()


def test_greedy_tokens_are_identical(model, prompts):
    assert torch.equal(
        completions(model, prompts, REPEATS, do_sample=False), completions(model, prompts, 1, do_sample=False)
    )


@pytest.mark.parametrize("rule", ["released", "transformers"])
def test_a_video_that_outlasts_its_question(prompts, tmp_path, rule):
    """6 cells of 1 second at 4 positions a second, from position 4 on: the last is at 24.

    The text after it starts at 25, or by transformers' rule at 6: then its last token, at 16, is before the last frame.
    """
    clip = write_clip(tmp_path / "long.mp4", seed=0, frames=24)
    row = {"prompt": message("Same?", "video"), "videos": [clip]}
    long = PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")))([row])
    model = shaken(model_path("tiny")).eval()
    apply_position_rule(model, rule)
    for beside in ([], prompts):
        once, each = (completions(model, [*long, *beside], repeats, do_sample=False) for repeats in (REPEATS, 1))
        assert torch.equal(once, each)


def test_sampling_draws_the_same_numbers(model, prompts):
    shared = completions(model, prompts, REPEATS, do_sample=True)
    assert torch.equal(shared, completions(model, prompts, 1, do_sample=True))
    assert not torch.equal(shared, completions(model, prompts, REPEATS, seed=1, do_sample=True))
    width = padded([prompt.input_ids for prompt in prompts])["input_ids"].size(1)
    assert not torch.equal(shared[0, width:], shared[1, width:])  # the completions of a prompt differ


def test_each_prompt_is_read_once(model, prompts):
    seen = forwards(model)
    completions(model, prompts, REPEATS, do_sample=False, min_new_tokens=12)
    width = padded([prompt.input_ids for prompt in prompts])["input_ids"].size(1)
    # three prompts but for their last token once, then twelve rows token by token, that token first
    assert seen == [(3, width - 1), *[(12, 1)] * 12]


def test_the_cache_holds_each_prompt_once(model, prompts):
    """Three prompts padded to P, twelve rows of P and 12 tokens: 3 (P - 1) + 12 * 12 keys a layer, not 12 (P + 11)."""
    found = completions(model, prompts, REPEATS, do_sample=False, min_new_tokens=12, return_dict_in_generate=True)
    width = found.sequences.size(1) - 12
    for layer in found[CACHE].layers:
        assert layer.prefix_keys.shape[::2] == (3, width - 1)
        assert layer.keys.shape[::2] == layer.values.shape[::2] == (12, 12)


@pytest.mark.parametrize("at_once", [1, 4, 9])
def test_completions_in_micro_batches(model, prompts, at_once):
    """Of groups of 4, at most 1, 4 and 9 rows are one, one and two groups."""
    seen = forwards(model)
    parts = completions(model, prompts, REPEATS, do_sample=False, at_once=at_once)
    assert {rows for rows, tokens in seen if tokens == 1} == ({4} if at_once < 8 else {8, 4})
    assert torch.equal(parts, completions(model, prompts, REPEATS, do_sample=False))


def test_micro_batches_that_end_early_are_padded(model, prompts):
    """Each stops where its own rows have ended: the groups have completions of other lengths."""
    width = max(len(prompt.input_ids) for prompt in prompts)
    whole = completions(model, prompts, REPEATS, do_sample=False)
    lengths = (whole[::REPEATS, width:] != 0).sum(1).tolist()
    assert len(set(lengths)) > 1
    assert torch.equal(whole, completions(model, prompts, REPEATS, at_once=REPEATS, do_sample=False))


def test_features_of_a_frozen_tower(model, prompts):
    model.requires_grad_(False)
    known = [encode(model, prompt.visual) for prompt in prompts for _ in range(REPEATS)]
    calls = []
    model.model.visual.register_forward_hook(lambda *args: calls.append(1))
    for repeats in (1, REPEATS):
        ours = completions(model, prompts, repeats, visuals=known, do_sample=False)
        assert calls == []
        assert torch.equal(ours, completions(model, prompts, repeats, do_sample=False))
        assert calls
        calls.clear()


def test_adapters(model, prompts):
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)).eval()
    shared = completions(adapted, prompts, REPEATS, do_sample=False)
    assert torch.equal(shared, completions(adapted, prompts, 1, do_sample=False))


def test_text_models(prompts):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    inputs = padded([[5, 6, 7, 8, 9], [11, 12]])
    found = []
    for repeats in (1, REPEATS):
        with torch.no_grad(), prefill_once(model, None, repeats):
            found.append(model.generate(**inputs, generation_config=config(do_sample=False)))
    assert torch.equal(*found)


def test_prompts_of_one_token_have_nothing_to_read_ahead():
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    with torch.no_grad(), prefill_once(model, None, REPEATS):
        shared = model.generate(**padded([[5]]), generation_config=config(do_sample=False))
    assert torch.equal(shared, model.generate(**padded([[5]]), generation_config=config(do_sample=False)))


def test_generation_is_left_as_it_was(model, prompts):
    with prefill_once(model, None, 2):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)


def test_other_caches_are_left_to_transformers(model):
    assert shared_prefill_unsupported_reason(model, config()) is None
    assert "another cache" in shared_prefill_unsupported_reason(model, config(cache_implementation="static"))
    assert "another cache" in shared_prefill_unsupported_reason(model, config(use_cache=False))
    assert "beams" in shared_prefill_unsupported_reason(model, config(num_beams=2))
