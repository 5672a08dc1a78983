"""What goes wrong silently with an engine that is not told, each with the guard that finds it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.conftest import write_clip
from tests.engine.rollouts import EXACT, engine_trainer, largest_difference, rollout
from tests.families.training import mixed
from tests.helpers import poster
from trl_perception.engine import colocate, generation
from trl_perception.families.qwen_vl import GridFamily as QwenVL


def engine_with(monkeypatch, **wrong):
    """Every engine is built with these options, whatever was asked."""
    made = generation.engine_options
    monkeypatch.setattr(generation, "engine_options", lambda *args, **kwargs: {**made(*args, **kwargs), **wrong})


def video(clips):
    return mixed(clips, [], {"video": "v"})


def test_pixels_that_the_engine_normalises_once_more_stop_the_run(tmp_path, clips, monkeypatch):
    engine_with(monkeypatch, mm_device_do_normalize=True)
    trainer = engine_trainer("qwen2_5_vl", tmp_path, video(clips))
    with pytest.raises(RuntimeError, match=r"row 0 .*: token \d .* has log-prob .* in the engine and .* in the policy"):
        rollout(trainer)


def test_an_engine_in_another_type_stops_the_run(tmp_path, clips, monkeypatch):
    engine_with(monkeypatch, dtype="bfloat16")
    trainer = engine_trainer("qwen2_5_vl", tmp_path, video(clips), engine_logp_tolerance=1e-3)
    with pytest.raises(RuntimeError, match=r"past engine_logp_tolerance 0\.001"):
        rollout(trainer)


def test_the_engine_has_the_type_of_the_trainers_forwards(tmp_path, clips):
    trainer = engine_trainer("qwen2_5_vl", tmp_path, video(clips))
    assert trainer.vllm_generation.llm.model_config.dtype == torch.float32


def test_times_that_are_dropped_stop_the_run_at_its_start(tmp_path, clips, monkeypatch):
    made = QwenVL.engine_item

    def without_times(self, *args):
        item = made(self, *args)
        item.facts.pop("second_per_grid_ts", None)
        return item

    monkeypatch.setattr(QwenVL, "engine_item", without_times)
    with pytest.raises(RuntimeError, match=r"place token .* of a prompt with a video differently"):
        engine_trainer("qwen2_5_vl", tmp_path, video(clips))


@pytest.mark.parametrize("rule", ["released", "transformers"])
def test_both_follow_the_rule_of_positions(rule, tmp_path):
    path = write_clip(tmp_path / "long.mp4", seed=9, frames=24, fps=2)
    trainer = engine_trainer("qwen2_5_vl", tmp_path, video([path]), position_rule=rule, video_max_frames=24)
    assert largest_difference(trainer, rollout(trainer)) < EXACT


def test_an_engine_of_another_rule_of_positions_stops_the_run_at_its_start(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(generation, "position_rule_of", lambda model: "released")
    with pytest.raises(RuntimeError, match="Engine and policy place token"):
        engine_trainer("qwen2_5_vl", tmp_path, video(clips), position_rule="transformers")


def test_a_rollout_that_failed_leaves_no_request_behind(tmp_path, clips, pictures, monkeypatch):
    trainer = engine_trainer("qwen2_5_vl", tmp_path, mixed(clips, pictures))
    engine = trainer.vllm_generation.llm.llm_engine
    step, calls = engine.step, []

    def breaks():
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("in mid-rollout")
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", breaks)
        with pytest.raises(MemoryError):
            rollout(trainer)
    assert not engine.has_unfinished_requests()
    assert largest_difference(trainer, rollout(trainer)) < EXACT


def test_other_tokens_than_the_prompts_stop_the_step(tmp_path, clips, monkeypatch):
    trainer = engine_trainer("qwen2_5_vl", tmp_path, video(clips))
    made = colocate.engine_input
    monkeypatch.setattr(colocate, "engine_input", lambda ids, *args: made([*ids, ids[-1]], *args))
    with pytest.raises(RuntimeError, match=r"row 0 .*: the prompt has \d+ tokens, and the engine sampled from"):
        rollout(trainer)


def test_images_that_trl_prepares_are_refused(tmp_path, clips, pictures):
    trainer = engine_trainer("qwen2_5_vl", tmp_path, video(clips))
    with pytest.raises(ValueError, match="would expand the placeholders of this prompt's images once more"):
        trainer.vllm_generation.generate([[1, 2]], [[poster(pictures[0])]], 1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_transformers_still_reads_a_model_by_its_own_classes(family, tmp_path, pictures):
    engine_trainer(family, tmp_path, mixed([], pictures, {"image": "i"}))
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert type(config).__module__.startswith("transformers.")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
