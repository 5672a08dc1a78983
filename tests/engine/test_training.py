"""Training with the engine: every method, dynamic sampling, evaluation, rows that are left out, and honesty about log-probs."""

import logging

import pytest
import torch
from datasets import Dataset

from tests.engine.rollouts import ENGINE, EXACT, SUPPRESSED, rollout
from tests.helpers import every_method, history
from trl_perception.engine import divergence, generation
from trl_perception.trainers import TRAINERS

OPTIONS = every_method(
    appo={"accuracy_reward": "letter_variety", "tokens_per_frame": 2},
    ral={"num_iterations": 2},
    t_grpo={"accuracy_reward": "letter_variety"},
    attn_distill={"teacher_model_name_or_path": "tiny_teacher"},
)


@pytest.mark.parametrize("method", TRAINERS)
def test_every_method_trains_on_what_was_sampled(method, rows, make_trainer):
    trainer = make_trainer(rows["mixed"], cls=TRAINERS[method], max_steps=3, **ENGINE, **OPTIONS[method])
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    (differences,) = history(trainer, "sampling/sampling_logp_difference/max")
    assert len(differences) == 3 // OPTIONS[method].get("num_iterations", 1) + (method == "ral")
    assert max(differences) < SUPPRESSED


def test_dynamic_sampling_refills_by_the_engine(rows, make_trainer):
    seen = []

    def flat_at_first(completions, **columns):
        seen.append(len(completions))
        return [float(len(seen) > 1) * index for index in range(len(completions))]

    trainer = make_trainer(rows["mixed"], reward=flat_at_first, max_steps=1, dynamic_sampling=True, **ENGINE)
    trainer.train()
    assert history(trainer, "dynamic_sampling/rounds", "dynamic_sampling/left") == [[1.0], [0.0]]


def test_an_evaluation_samples_by_the_engine(rows, make_trainer, monkeypatch):
    monkeypatch.setattr(generation, "PLACEHOLDER_BIAS", 0.0)
    trainer = make_trainer(
        rows["mixed"],
        extra={"eval_dataset": Dataset.from_list(rows["several"])},
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        **ENGINE,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] > 0
    assert metrics["eval_sampling/sampling_logp_difference/max"] < EXACT


def test_rows_that_are_left_out_count_in_no_difference(rows, make_trainer):
    broken = {**rows["video"][0], "videos": ["/nowhere.mp4"]}
    settings = {"on_bad_media": "skip", "check_rows": False, "per_device_train_batch_size": 8}
    trainer = make_trainer([rows["video"][1], broken], max_steps=1, **settings, **ENGINE)
    trainer.train()
    (differences,) = history(trainer, "sampling/sampling_logp_difference/max")
    assert differences[0] < SUPPRESSED


@pytest.mark.parametrize("correction", [True, False])
def test_a_difference_is_warned_of_and_past_the_tolerance_stops_with_sample_and_token(
    correction, rows, make_trainer, caplog, monkeypatch
):
    """Weights that the engine does not have: the update before this rollout was never sent."""
    monkeypatch.setattr(divergence, "WARNS_FROM", 0.0)
    options = {"vllm_importance_sampling_correction": correction, "max_steps": 2, **ENGINE}
    named = [{**row, "id": f"clip-{number}"} for number, row in enumerate(rows["video"])]
    trainer = make_trainer(named, **options)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert any("has log-prob" in record.message and "sample clip-" in record.message for record in caplog.records)
    trainer = make_trainer(named, engine_logp_tolerance=0.5, **options)
    trainer.vllm_generation.sync_weights = lambda: None
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(3.0)
    with pytest.raises(RuntimeError, match=r"sample clip-\d: token \d of its completion .* Likely causes"):
        trainer.train()


@pytest.mark.parametrize("correction", [True, False])
def test_without_the_correction_credit_is_read_from_the_update(correction, rows, make_trainer):
    """The forward of the old policy, which the correction needs, is saved."""
    options = {**ENGINE, **OPTIONS["appo"], "vllm_importance_sampling_correction": correction}
    output = rollout(make_trainer(rows["video"][:1], cls=TRAINERS["appo"], **options))
    assert ("old_per_token_logps" in output) == correction
    assert ("group" in output) == (not correction)


def test_a_seed_gives_the_completions_of_a_group_different_tokens(rows, make_trainer):
    trainer = make_trainer(rows["video"][:1], generation_kwargs={"seed": 7}, temperature=2.0, **ENGINE)
    completions = rollout(trainer)["completion_ids"].tolist()
    assert len({tuple(completion) for completion in completions}) > 1


def test_a_prompt_that_leaves_no_room_is_named(rows, make_trainer):
    trainer = make_trainer(rows["video"][:1], vllm_max_model_length=40, **ENGINE)
    with pytest.raises(ValueError, match=r"row 0 .*: the prompt has \d+ tokens, .* vllm_max_model_length 40"):
        rollout(trainer)


def test_a_medium_that_the_encoder_cache_cannot_hold_is_named(rows, make_trainer):
    trainer = make_trainer(rows["video"][:1], **ENGINE)
    trainer.vllm_generation.llm.llm_engine.input_processor.mm_encoder_cache_size = 8
    with pytest.raises(ValueError, match=r"its video has 16 visual tokens.*max_num_batched_tokens: 16"):
        rollout(trainer)
