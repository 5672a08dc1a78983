"""Settings of TRL and ours that must work with media: freezing, adapters, evaluation, logs, video features."""

import math
import re
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, List, Value, Video
from peft import LoraConfig
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from tests.helpers import history, message
from trl_perception import GRPOVideoConfig
from trl_perception.assets import model_path
from trl_perception.engine import check_engine, checks


def trained_parts(trainer) -> dict[str, bool]:
    """Whether an update changes the tower, the merger and the language model."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name: not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters()}
    return {
        "tower": any(changed[n] for n in changed if "visual" in n and "merger" not in n),
        "merger": any(changed[n] for n in changed if "merger" in n),
        "language": any(changed[n] for n in changed if "language_model" in n),
    }


@pytest.mark.parametrize(("tower", "merger"), [(False, False), (True, False), (False, True), (True, True)])
def test_frozen_parts_keep_their_weights(rows, make_trainer, tower, merger):
    trainer = make_trainer(rows["video"], freeze_vision_tower=tower, freeze_merger=merger, max_steps=2)
    assert trained_parts(trainer) == {"tower": not tower, "merger": not merger, "language": True}


def test_lora_trains_adapters_with_a_reference_and_media(rows, make_trainer):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(rows["mixed"], extra={"peft_config": config}, beta=0.1, num_iterations=2, max_steps=3)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora" in name for name in changed)
    assert history(trainer, "kl")[0][-1] > 0


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"])
def test_every_loss_type_takes_videos(rows, make_trainer, loss_type):
    trainer = make_trainer(
        rows["mixed"], loss_type=loss_type, num_iterations=2, max_steps=2, per_device_train_batch_size=8
    )
    trainer.train()
    (gradients,) = history(trainer, "grad_norm")
    assert all(0 < norm < 1e4 for norm in gradients)


def test_evaluation_scores_held_out_media(rows, make_trainer):
    trainer = make_trainer(
        rows["video"],
        extra={"eval_dataset": Dataset.from_list(rows["mixed"])},
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        max_steps=1,
    )
    metrics = trainer.evaluate()
    assert 1 <= metrics["eval_reward"] <= 60  # letters of a completion
    assert metrics["eval_media/skipped"] == 0
    assert torch.isfinite(torch.tensor(metrics["eval_loss"]))


def test_completions_table_keeps_prompts_and_shows_frames(rows, make_trainer, tmp_path):
    trainer = make_trainer(rows["mixed"], log_completions=True, log_multimodal=True, num_generations=2, max_steps=2)
    trainer.train()
    tables = sorted((tmp_path / "run" / "completions").glob("*.parquet"))
    assert len(tables) == 2
    table = pd.read_parquet(tables[-1])
    assert len(table) == 4
    assert {"prompt", "completion", "letter_variety", "advantage"} <= set(table)
    pictures = list(trainer._logs["images"])
    # A clip shows its 8 sampled frames, a picture itself, a text nothing.
    assert len(pictures) == 4
    assert {len(of_row) for of_row in pictures} <= {0, 1, 8, 17}


def test_a_video_feature_is_decoded_with_our_sampling(clips, make_trainer):
    dataset = Dataset.from_dict(
        {"prompt": [message("Colour of scene 1?", "video")] * 2, "videos": [[clips[0]], [clips[1]]]},
        features=Features(
            {
                "prompt": [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}],
                "videos": List(Video()),
            }
        ),
    )
    trainer = make_trainer(dataset, max_steps=1)
    trainer.train()
    (prompt,) = trainer._prompt_preparer([trainer.train_dataset[0]])
    assert [frames.shape[0] for frames in prompt.frames] == [8]  # 4 s at 2 frames a second


def test_media_may_stand_inside_messages_with_their_own_sampling(clips, make_trainer):
    block = {"type": "video", "video": clips[0], "fps": 1.0, "video_start": 1.0, "video_end": 3.0}
    text = {"type": "text", "text": "Colour?"}
    trainer = make_trainer([{"prompt": [{"role": "user", "content": [block, text]}]}] * 2, max_steps=1)
    trainer.train()
    (prompt,) = trainer._prompt_preparer([trainer.train_dataset[0]])
    # Arrow gives the text block a video of None, and the video block a text of None: neither may count.
    assert len(prompt.frames) == 1
    assert 1.0 <= min(prompt.frame_times[0]) < max(prompt.frame_times[0]) <= 3.0


def test_wrong_settings_are_refused(tmp_path, rows, make_trainer):
    for name, value in {"on_bad_media": "ignore", "video_fps": 0, "video_max_frames": 2}.items():
        with pytest.raises(ValueError, match=name):
            GRPOVideoConfig(str(tmp_path), use_cpu=True, bf16=False, **{name: value})


def test_the_configuration_beside_the_weights_has_no_token(tmp_path):
    config = GRPOVideoConfig(str(tmp_path), use_cpu=True, bf16=False, hub_token="hf_mine", hub_model_id="seen")
    torch.save(config, tmp_path / "training_args.bin")
    assert b"hf_mine" not in (tmp_path / "training_args.bin").read_bytes()
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (loaded.hub_token, loaded.hub_model_id, loaded.hub_strategy) == (None, "seen", "end")
    assert config.hub_token == "hf_mine"


def test_trl_config_is_refused_by_name(rows, make_trainer):
    from trl import GRPOConfig

    with pytest.raises(TypeError, match="GRPOConfig; GRPOVideoTrainer wants a GRPOVideoConfig"):
        make_trainer(rows["text"], config_class=GRPOConfig)


ENGINE_REFUSALS = {
    "engine_weight_folder is set, and weights go through no folder": {"engine_weight_folder": "weights"},
    "vllm_model_impl is 'transformers'": {"vllm_model_impl": "transformers"},
    "top_p is 0.9: the engine's log-probs would be of the tokens that it leaves": {"top_p": 0.9},
    "top_k is 20: ": {"top_k": 20},
    "min_p is 0.1: ": {"min_p": 0.1},
    "repetition_penalty is 1.1: ": {"repetition_penalty": 1.1},
    "top_k is 5: ": {"generation_kwargs": {"top_k": 5}},
    "bad_words changes the engine's probabilities": {"generation_kwargs": {"bad_words": ["no"]}},
    "vllm_structured_outputs_regex changes the engine's": {"vllm_structured_outputs_regex": "a+"},
    "n is 2: the trainer counts the completions": {"generation_kwargs": {"n": 2}},
    "engine_options has dtype, which follows from the trainer": {"engine_options": {"dtype": "float16"}},
    "Set vllm_max_model_length to 108 or more": {"vllm_max_model_length": 107, "max_prompt_length": 100},
    "Set vllm_max_model_length to 9 or more": {"engine_options": {"max_model_len": 8}},
    "Set it to 5000 or more": {"engine_options": {"max_num_batched_tokens": 4096}, "max_prompt_length": 5000},
}


@pytest.mark.parametrize("message", ENGINE_REFUSALS)
def test_what_cannot_work_with_the_engine_is_refused(message, tmp_path):
    settings = {"vllm_mode": "colocate", "max_completion_length": 8, "bf16": False, "report_to": "none"}
    config = GRPOVideoConfig(str(tmp_path), use_vllm=True, **{**settings, **ENGINE_REFUSALS[message]})
    with pytest.raises(ValueError, match=re.escape(message)):
        check_engine(config, quantised=False)


def test_the_engine_is_refused_for_quantised_weights(tmp_path):
    config = GRPOVideoConfig(str(tmp_path), use_vllm=True, vllm_mode="colocate", bf16=False)
    with pytest.raises(ValueError, match="The model is quantised"):
        check_engine(config, quantised=True)


@pytest.mark.parametrize("version", ["0.29.1", "0.31.0", None])
def test_an_engine_outside_the_tested_versions_is_refused_before_weights_are_loaded(
    version, rows, make_trainer, monkeypatch
):
    monkeypatch.setattr(checks, "engine_version", lambda: version)
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", None)
    error = (ImportError, "vLLM is not installed") if version is None else (ValueError, f"vLLM {version} is installed")
    with pytest.raises(error[0], match=error[1]):
        make_trainer(rows["video"], use_vllm=True, vllm_mode="colocate")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="TRL would load the model into the engine")
def test_vllm_stays_trls_for_a_text_model(rows, make_trainer):
    tokenizer = AutoProcessor.from_pretrained(model_path("tiny")).tokenizer
    with pytest.raises(ImportError, match="vLLM"):
        make_trainer(rows["text"], use_vllm=True, extra={"processing_class": tokenizer})


def test_continuous_batching_is_refused_with_media_as_in_trl(rows, make_trainer):
    with pytest.raises(ValueError, match="use_transformers_continuous_batching"):
        make_trainer(rows["video"], use_transformers_continuous_batching=True)


def test_rewards_get_prompts_of_text_as_in_trl(rows, make_trainer):
    seen = []

    def keeps(prompts, completions, **columns):
        seen.append(prompts[0])
        return [0.0] * len(prompts)

    given = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say red."}]
    make_trainer([{"prompt": given}], reward=keeps, max_steps=1).train()
    assert seen.pop() == given
    # with a column for media every prompt is blocks, as TRL makes them
    make_trainer([{"prompt": given, "images": []}], reward=keeps, max_steps=1).train()
    assert [message["content"] for message in seen.pop()] == [
        [{"type": "text", "text": message["content"]}] for message in given
    ]


def test_a_reward_model_reads_text_with_a_template_for_strings(make_trainer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=540, num_key_value_heads=2, num_labels=1, pad_token_id=0, **sizes)
    judge = Qwen2ForSequenceClassification(config)
    judge.config._name_or_path = "mine/judge"
    tokenizer = AutoProcessor.from_pretrained(model_path("tiny")).tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    trainer = make_trainer(
        [{"prompt": [{"role": "user", "content": "Say red."}]}],
        reward=judge,
        extra={"reward_processing_classes": tokenizer},
        max_steps=1,
    )
    trainer.train()
    ((mean,),) = history(trainer, "rewards/judge/mean")
    assert math.isfinite(mean)


def with_video_feature(clips):
    """Rows whose clips would be decoded on access, by a backend that may be missing."""
    content = [{"type": Value("string"), "text": Value("string")}]
    features = Features({"prompt": [{"role": Value("string"), "content": content}], "videos": List(Video())})
    prompts = [message("Colour of scene 1?", "video")] * len(clips)
    return Dataset.from_dict({"prompt": prompts, "videos": [[clip] for clip in clips]}, features=features)


def test_data_sets_that_are_handed_to_an_evaluation_are_read_as_those_of_the_run(clips, rows, make_trainer):
    settings = {"num_generations_eval": 2, "per_device_eval_batch_size": 4, "max_completion_length": 2}
    trainer = make_trainer(rows["video"], **settings)
    featured = with_video_feature(clips[:2])
    assert trainer.evaluate(featured)["eval_media/skipped"] == 0
    assert trainer.evaluate({"a": featured})["eval_a_loss"] == pytest.approx(0, abs=1e-6)
    assert trainer.predict(featured).metrics["test_loss"] == pytest.approx(0, abs=1e-6)


def test_a_prediction_samples_groups_of_one_prompt_from_a_stream_too(rows, make_trainer):
    seen = []

    def keeps(prompts, completions, **columns):
        seen.extend(str(prompt) for prompt in prompts)
        return [float(len(seen))] * len(prompts)

    trainer = make_trainer(
        rows["video"],
        reward=keeps,
        extra={"eval_dataset": Dataset.from_list(rows["video"][:1])},
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        max_completion_length=2,
    )
    trainer.predict(Dataset.from_list(rows["video"]).to_iterable_dataset())
    assert len(seen) == 8  # four prompts, two completions each
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == 4
    # rewards of the prediction are 4 and 8; the evaluation samples one more pair, at 10, and reports only that
    assert trainer.evaluate()["eval_reward"] == 10


def test_generation_with_beams_and_without_suppressed_tokens(rows, make_trainer):
    beams = {"num_beams": 2, "do_sample": False, "suppress_tokens": None}
    trainer = make_trainer(rows["mixed"], generation_kwargs=beams, max_steps=1)
    trainer.train()
    assert history(trainer, "completions/max_length") == [[8]]
    assert trainer.generation_config.suppress_tokens == sorted(set(trainer._prompt_preparer.placeholder_ids.values()))
