"""The engine samples from what training sees: ids, greedy tokens and log-probs, for every family and kind of row."""

import pytest

from tests.engine.rollouts import GREEDY, engine_trainer, exact, largest_difference, rollout
from tests.families.training import mixed

FAMILIES = (
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "internvl",
    "internvl_moe",
    "smolvlm",
    "glm4v",
    "glm4v_moe",
    "gemma3",
    "gemma4",
    "gemma4_large",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family, tmp_path, clips, pictures):
    rows = mixed(clips, pictures)
    ours = engine_trainer(family, tmp_path, rows, **GREEDY)
    plain = engine_trainer(family, tmp_path, rows, use_vllm=False, generation_kwargs={"do_sample": False})
    sampled, wanted = rollout(ours), rollout(plain)
    assert sampled["completion_ids"].tolist() == wanted["completion_ids"].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_sampling_are_the_policys(family, tmp_path, clips, pictures):
    trainer = engine_trainer(family, tmp_path, mixed(clips, pictures))
    assert largest_difference(trainer, rollout(trainer)) < exact(family)


REFUSED = {
    "glm46v": "has no model of its own",
    "gemma3": "attend to each other in both directions, and vLLM for CPUs does not do so",
    "gemma4_large": "attend to each other in both directions, and vLLM for CPUs does not do so",
    "qwen3_5": "linear attention on a CPU",
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_the_engine_cannot_follow_here_are_refused(name, tmp_path, pictures):
    with pytest.raises(ValueError, match=f"use_vllm is not possible with .*{REFUSED[name]}"):
        engine_trainer(name, tmp_path, mixed([], pictures, {"image": "i"}))


@pytest.mark.parametrize(("family", "name"), [("gemma3", "Gemma 3"), ("gemma4", "Gemma 4")])
def test_features_of_a_frozen_tower_that_the_engine_does_not_take_are_refused(family, name, tmp_path, clips, pictures):
    frozen = {"freeze_vision_tower": True, "freeze_merger": True}
    rows = mixed(clips, pictures)
    with pytest.raises(ValueError, match=rf"takes no features of {name}'s .*Set reuse_vision_features=False"):
        engine_trainer(family, tmp_path, rows, **frozen)
    trainer = engine_trainer(family, tmp_path, rows, reuse_vision_features=False, **frozen)
    assert largest_difference(trainer, rollout(trainer)) < exact(family)
