"""Models that are no family: videos are refused at the start, images are TRL's, and what would be lost silently is an error."""

import pytest
from datasets import Dataset

from tests.families.tiny import tiny
from tests.families.training import mixed, trainer_of
from tests.helpers import every_method, history
from trl_perception.data.training_checks import refuse_padded
from trl_perception.families import FAMILIES
from trl_perception.media import PromptPreparer

UNKNOWN = "TRL prepared the images of these prompts .* Use a family of docs/models.md"
each = pytest.mark.parametrize("name", ["llava_onevision", "minicpmv4_6"])


@each
def test_a_video_is_refused_at_the_start_with_the_families(name, clips, pictures, tmp_path):
    with pytest.raises(ValueError, match="The prompt has a video, and videos are not supported with") as refusal:
        trainer_of(name, "grpo", tmp_path, mixed(clips, pictures))
    for family in FAMILIES:
        assert family.name in str(refusal.value)
    (text, *_), (*_, video) = mixed(clips, pictures, ("text",)), mixed(clips, pictures, ("video",))
    with pytest.raises(ValueError, match="The prompt has a video"):
        trainer_of(name, "grpo", tmp_path, [text], extra={"eval_dataset": Dataset.from_list([video])})


def test_images_take_trls_path(clips, pictures, tmp_path):
    rows = mixed(clips, pictures, ("image",), 2)
    trainer = trainer_of("llava_onevision", "grpo", tmp_path, rows, per_device_train_batch_size=4)
    trainer.train()
    assert not trainer._prepares_prompts
    (norms,) = history(trainer, "grad_norm")
    assert all(norm > 1e-2 for norm in norms)


READS = every_method(attn_distill={"gkd_weight": 0.0})


@pytest.mark.parametrize("method", [method for method in READS if method not in ("grpo", "t_grpo", "tw_grpo")])
def test_signals_of_images_that_trl_prepared_are_refused(method, clips, pictures, tmp_path):
    """Media stand in the messages, so that no column says that a prompt has them. RAL logged a visual mass of 0."""
    rows = mixed(clips, pictures, ("image",), 2)
    trainer = trainer_of("llava_onevision", method, tmp_path, rows, per_device_train_batch_size=4, **READS[method])
    with pytest.raises(ValueError, match=UNKNOWN):
        trainer.train()


def test_a_text_of_another_family_has_no_visual_mass(clips, pictures, tmp_path):
    rows = mixed(clips, pictures, ("text",), 2)
    trainer = trainer_of("llava_onevision", "ral", tmp_path, rows, per_device_train_batch_size=4)
    trainer.train()
    assert history(trainer, "ral/visual_mass") == [[0.0, 0.0]]


PADS = (
    "MiniCPMV4_6Processor pads the prompts of a batch to one length, and TRL would train with up to [0-9]+ pad tokens"
)


def test_prompts_that_a_processor_padded_are_refused(clips, pictures, tmp_path):
    rows = mixed(clips, pictures, ("text",), 2)
    rows[1]["prompt"][0]["content"][0]["text"] += " And which one comes last of all?"
    trainer = trainer_of("minicpmv4_6", "grpo", tmp_path, rows, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match=PADS):
        trainer.train()
    # One prompt a rollout has no other to be padded to.
    trainer_of("minicpmv4_6", "grpo", tmp_path, rows, per_device_train_batch_size=2).train()


def test_gemma4_with_tools_is_padded_by_trl(clips, pictures, tmp_path):
    rows = mixed(clips, pictures, ("text",), 2)
    rows[1]["prompt"][0]["content"][0]["text"] += " And which one comes last of all?"
    settings = {"per_device_train_batch_size": 4, "extra": {"rollout_func": lambda *args: None}}
    trainer = trainer_of("gemma4", "grpo", tmp_path, rows, **settings)
    assert not trainer._prepares_prompts
    prompts = [row["prompt"] for row in rows]
    with pytest.raises(
        ValueError, match=r"Gemma4Processor pads the prompts .*chat_template_kwargs=\{'padding': False\}"
    ):
        trainer._tokenize_prompts(prompts)
    told = trainer_of("gemma4", "grpo", tmp_path, rows, **settings, chat_template_kwargs={"padding": False})
    short, long = told._tokenize_prompts(prompts)[0]
    assert len(short) < len(long)


def test_pads_that_every_prompt_begins_with_are_its_own():
    class Words:
        pad_token_id = 0

    refuse_padded([[0, 5, 6], [0, 7]], Words())  # a template that begins with the pad token, no padding
    refuse_padded([[5, 6], [0, 0]], Words())  # nothing but pads: no place to count from
    for ids in ([[0, 0, 5], [0, 6, 7]], [[5, 0], [6, 7]]):  # left and right
        with pytest.raises(ValueError, match=r"Words pads the prompts .* up to [12] pad tokens"):
            refuse_padded(ids, Words())


def test_a_processor_of_another_family_is_refused(clips, pictures, tmp_path):
    with pytest.raises(
        ValueError, match="The model is a qwen3_vl, and a InternVLProcessor prepares prompts for InternVL"
    ):
        trainer_of("internvl", "grpo", tmp_path, mixed(clips, pictures), model=tiny("qwen3_vl").model)


def test_a_preparer_names_the_families_that_it_supports():
    with pytest.raises(ValueError, match="LlavaOnevisionProcessor is the processor of no supported family: Qwen2-VL"):
        PromptPreparer(tiny("llava_onevision").processor)
