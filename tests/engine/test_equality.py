"""The engine samples from what training sees: ids, greedy tokens and log-probs, for every family and kind of row."""

import pytest

from tests.engine.rollouts import EXACT, GREEDY, engine_trainer, largest_difference, rollout
from tests.families.training import mixed

FAMILIES = (
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "internvl",
    "smolvlm",
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
    assert largest_difference(trainer, rollout(trainer)) < EXACT
