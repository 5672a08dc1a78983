"""Completions: padding, ends, sampling, and which generation settings of a checkpoint apply."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig

from trl_perception.cli.ask import ask
from trl_perception.evaluation.generate import complete, generation_config
from trl_perception.evaluation.model import base_and_adapter, load_model, weights_digest
from trl_perception.evaluation.settings import EvaluationSettings
from trl_perception.media import PromptPreparer, VideoSettings

SIGHT = VideoSettings(fps=4.0, max_frames=16)


def settings(**changes):
    return EvaluationSettings(**{"model": "tiny", "data": "?", "output": "?", "max_new_tokens": 40, **changes})


def configured(tiny, **changes):
    """The model with the settings' generation, beside the shared one."""
    model, processor = copy.copy(tiny[0]), tiny[1]
    model.generation_config = generation_config(settings(**changes), *tiny)
    return model, processor


@pytest.fixture(scope="module")
def prompts(tiny, rows):
    return PromptPreparer(tiny[1], video_settings=SIGHT)(list(rows))


def test_a_mixed_batch_is_answered_as_row_by_row(tiny, rows, prompts):
    model, processor = configured(tiny)
    together = [completion.text for (completion,) in complete(model, processor, prompts)]
    alone = [complete(model, processor, [prompt])[0][0].text for prompt in prompts]
    # padding and neighbours change sums in the last bits only, which may tip a rare near-tie
    assert sum(one == other for one, other in zip(together, alone, strict=True)) >= len(rows) - 1
    row = next(row for row in rows if row["videos"])
    question = row["prompt"][0]["content"][-1]["text"]
    asked = ask(*tiny, row["videos"][0], question, video_settings=SIGHT, max_new_tokens=40)
    assert alone[rows["id"].index(row["id"])] == asked


def test_a_completion_ends_with_its_turn_or_is_cut(tiny, prompts):
    end = tiny[1].tokenizer.eos_token_id
    whole = [completion for (completion,) in complete(*configured(tiny), prompts)]
    assert all(completion.ids.count(end) == 1 and completion.ids[-1] == end for completion in whole)
    assert not any(completion.cut or "<|im_end|>" in completion.text for completion in whole)
    short = [completion for (completion,) in complete(*configured(tiny, max_new_tokens=3), prompts)]
    assert all(completion.cut and len(completion.ids) == 3 for completion in short)
    assert [completion.ids for completion in short] == [completion.ids[:3] for completion in whole]


def test_sampling_follows_its_seed_and_leaves_the_global_one_alone(tiny, prompts):
    model, processor = configured(tiny, samples=3, temperature=1.0)
    before = torch.random.get_rng_state()
    first = complete(model, processor, prompts[:4], samples=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(of_row) for of_row in first] == [3] * 4
    assert complete(model, processor, prompts[:4], samples=3, seed=1) == first
    assert complete(model, processor, prompts[:4], samples=3, seed=2) != first
    assert any(len({completion.text for completion in of_row}) > 1 for of_row in first)


def test_a_checkpoints_penalties_do_not_enter_and_its_ends_do(tiny, prompts):
    model, processor = copy.copy(tiny[0]), tiny[1]
    plain = complete(*configured(tiny), prompts[:3])
    model.generation_config = GenerationConfig(repetition_penalty=9.0, eos_token_id=processor.tokenizer.eos_token_id)
    model.generation_config = generation_config(settings(), model, processor)
    assert complete(model, processor, prompts[:3]) == plain
    model.generation_config = GenerationConfig(repetition_penalty=9.0, temperature=0.1, eos_token_id=[3, 5])
    config = generation_config(settings(temperature=0.7, top_p=0.9), model, processor)
    assert (config.repetition_penalty, config.temperature, config.top_p) == (None, 0.7, 0.9)
    assert config.eos_token_id == [3, 5]


def test_placeholders_are_never_generated(tiny, prompts):
    model, processor = configured(tiny, max_new_tokens=4)
    ids = [processor.image_token_id, processor.video_token_id]
    head = tiny[0].lm_head
    hook = head.register_forward_hook(lambda *call: call[-1].index_fill(-1, torch.tensor(ids), 1e4))
    try:
        completions = complete(model, processor, prompts)
    finally:
        hook.remove()
    assert all(set(ids).isdisjoint(completion.ids) for (completion,) in completions)


@pytest.fixture
def adapter(tiny, tmp_path):
    """A LoRA adapter that changes answers, saved as a trainer saves it."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=64)
    get_peft_model(copy.deepcopy(tiny[0]), config).save_pretrained(tmp_path / "adapter")
    tiny[1].save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("named", ["as model", pytest.param("beside model", marks=pytest.mark.slow)])
def test_a_lora_adapter_is_loaded(tiny, prompts, adapter, named):
    given = {"model": str(adapter)} if named == "as model" else {"model": "tiny", "adapter": str(adapter)}
    model, processor = load_model(settings(**given), torch.device("cpu"))
    model.generation_config = generation_config(settings(), model, processor)
    adapted = [completion.text for (completion,) in complete(model, processor, prompts[:6])]
    plain = [completion.text for (completion,) in complete(*configured(tiny), prompts[:6])]
    assert adapted != plain
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny[0]), adapter).merge_and_unload()
    merged.generation_config = model.generation_config
    assert [completion.text for (completion,) in complete(merged, processor, prompts[:6])] == adapted


def test_two_adapters_are_refused(adapter):
    with pytest.raises(ValueError, match="is itself a LoRA adapter"):
        base_and_adapter(settings(model=str(adapter), adapter="other"))


def test_the_digest_notices_other_weights_in_the_same_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = weights_digest(settings(model=str(tmp_path)))
    assert weights_digest(settings(model=str(tmp_path))) == before
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert weights_digest(settings(model=str(tmp_path))) != before
    assert weights_digest(settings(model="org/on-the-hub")) is None
