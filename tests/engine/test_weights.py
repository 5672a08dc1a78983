"""After an update the engine samples with the new weights, and nothing older is left in its caches."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig

from tests.engine.rollouts import (
    BOTH_WAYS,
    EXACT,
    EXPERTS,
    after_update,
    engine_trainer,
    exact,
    largest_difference,
    rollout,
    saved,
    wide,
)
from tests.engine.test_equality import FAMILIES
from tests.families.tiny import tiny
from tests.families.training import mixed
from trl_perception.engine import generation
from trl_perception.engine.weights import merged_parameters

LORA = {"extra": {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=32)}}
WEIGHTS = {
    "full": {},
    "adapter": LORA,
    "frozen tower": {"freeze_vision_tower": True, "freeze_merger": True},
    "frozen tower, merger trained": {"freeze_vision_tower": True},
    "frozen tower, adapter": {"freeze_vision_tower": True, "freeze_merger": True, **LORA},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_log_probs_follow_an_update(name, tmp_path, clips, pictures):
    trainer = engine_trainer("qwen2_5_vl", tmp_path, mixed(clips, pictures), **WEIGHTS[name])
    before = rollout(trainer)
    assert largest_difference(trainer, before) < EXACT
    assert largest_difference(trainer, after_update(trainer)) < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_sent(family, tmp_path, clips, pictures):
    """Those too that are never trained: sleep mode, which needs a GPU, discards all."""
    trainer = engine_trainer(family, tmp_path, mixed(clips, pictures))
    with torch.no_grad():
        for parameter in model_of_engine(trainer).parameters():
            parameter.fill_(torch.nan)
    assert largest_difference(trainer, rollout(trainer)) < exact(family)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "internvl", "smolvlm", "glm4v"])
def test_a_frozen_tower_never_runs_in_the_engine(family, tmp_path, clips, pictures, monkeypatch):
    frozen = {"freeze_vision_tower": True, "freeze_merger": True}
    trainer = engine_trainer(family, tmp_path, mixed(clips, pictures), **frozen)
    towers = [
        module
        for name, module in model_of_engine(trainer).named_modules()
        if name.split(".")[-1] in ("visual", "vision_tower", "vision_model")
    ]
    assert towers
    for tower in towers:
        monkeypatch.setattr(tower, "forward", None)
    assert largest_difference(trainer, rollout(trainer)) < exact(family)
    assert largest_difference(trainer, after_update(trainer)) < exact(family)


def model_of_engine(trainer):
    return trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner.get_model()


EXPERT_ADAPTER = {
    "extra": {
        "peft_config": LoraConfig(
            r=4, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
        )
    }
}


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("adapter", [{}, EXPERT_ADAPTER], ids=["full", "adapter"])
def test_experts_follow_an_update(family, adapter, tmp_path, clips, pictures):
    trainer = engine_trainer(family, tmp_path, mixed(clips, pictures), **adapter)
    rollout(trainer)
    assert largest_difference(trainer, after_update(trainer)) < exact(family)


@pytest.mark.parametrize("family", BOTH_WAYS)
@pytest.mark.parametrize("adapted", [False, True])
def test_models_whose_pictures_see_themselves_both_ways_follow_an_update(family, adapted, tmp_path, clips, pictures):
    adapter = {"peft_config": LoraConfig(r=4, target_modules=r".*language_model.*\.[qv]_proj", lora_alpha=32)}
    config = {"extra": adapter, "reuse_vision_features": False} if adapted else {}
    trainer = engine_trainer(family, tmp_path, mixed(clips, pictures), **config)
    rollout(trainer)
    assert largest_difference(trainer, after_update(trainer)) < EXACT


@pytest.mark.parametrize("family", ["qwen3_5"])
def test_adapters_of_linear_attention_follow_an_update(family, tmp_path, clips, pictures):
    targets = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "q_proj"]
    adapter = {"peft_config": LoraConfig(r=4, target_modules=targets, lora_alpha=32)}
    trainer = engine_trainer(family, tmp_path, mixed(clips, pictures), extra=adapter)
    before = rollout(trainer)
    assert largest_difference(trainer, before) < exact(family)
    assert largest_difference(trainer, after_update(trainer)) < exact(family)


def test_a_head_that_is_tied_to_the_embeddings_follows_an_update(tmp_path, clips, pictures):
    own = wide("qwen2_5_vl")
    for config in (own.model.config, own.model.config.text_config):
        config.tie_word_embeddings = True
    own.model.lm_head.weight = own.model.get_input_embeddings().weight
    saved(own, tmp_path / "model")
    trainer = engine_trainer("qwen2_5_vl", tmp_path, mixed(clips, pictures))
    assert trainer.model.lm_head.weight is trainer.model.get_input_embeddings().weight
    rollout(trainer)
    assert largest_difference(trainer, after_update(trainer)) < EXACT


@pytest.mark.parametrize("kept", ["keys", "reset"])
def test_the_encoder_cache_holds_nothing_older_than_the_weights(kept, tmp_path, pictures, monkeypatch):
    """Two guards, of which each alone is enough: keys of a rollout, and an empty cache after a sync."""
    if kept == "keys":
        from vllm.v1.engine.llm_engine import LLMEngine

        monkeypatch.setattr(LLMEngine, "reset_encoder_cache", lambda self: None)
    else:
        made = generation.engine_media
        monkeypatch.setattr(generation, "engine_media", lambda *args: made(*args[:3], "always", *args[4:]))
    trainer = engine_trainer("qwen2_5_vl", tmp_path, mixed([], pictures, {"image": "i"}))
    rollout(trainer)
    assert largest_difference(trainer, after_update(trainer)) < EXACT


def test_three_hundred_syncs_leave_a_base_in_bfloat16_as_it_was():
    from peft import get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny("qwen2_5_vl").model.to(torch.bfloat16), config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gathered = []
    for _ in range(300):
        named = merged_parameters(model, lambda held: nullcontext(gathered.append(len(held))), torch.device("cpu"))
        merged = {name: value.clone() for name, value in named}
    assert max(gathered) == 4  # weight and bias of a layer, and the two of its adapter
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # merged once by PEFT itself
    model.merge_adapter()
    own = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in model.named_parameters()
        if model.prefix not in name
    }
    assert merged.keys() == own.keys()
    assert all(torch.equal(value, merged[name]) for name, value in own.items())


def test_placeholders_are_never_sampled(tmp_path, clips, pictures):
    trainer = engine_trainer("qwen2_5_vl", tmp_path, mixed(clips, pictures), engine_logp_tolerance=100.0)
    ids = sorted(set(trainer.prompt_preparer.placeholder_ids.values()))
    with torch.no_grad():
        trainer.model.lm_head.weight[ids] *= 8  # one of them would be a token in two
    output = rollout(trainer)
    assert not torch.isin(output["completion_ids"], torch.tensor(ids)).any()
    assert largest_difference(trainer, output) < EXACT
