"""Model cards: the method, its paper and how to cite it; the training and its results."""

import dataclasses
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig

from tests.helpers import message
from trl_perception.data.templates import templated_prompt
from trl_perception.reports.card_facts import Origin, before_and_after, parts_trained
from trl_perception.trainers import TRAINERS

ORIGIN = Origin(
    recipe="trainer: grpo\nmodel_name_or_path: org/base\n",
    command="trl-perception train --config mine.yaml",
    base="/data/models/base",
    dataset="org/clips",
    split="train[:10]",
    on_hub=True,
)

PAPERS = {
    "grpo": "2402.03300",
    "appo": "2602.23823",
    "pgpo": "2604.01840",
    "ktr": "2601.19686",
    "ral": "2602.04884",
    "attn_distill": "2602.04884",
    "papo": "2507.06448",
    "vppo": "2510.09285",
    "t_grpo": "2503.21776",
    "tw_grpo": "2505.24718",
}


@pytest.mark.parametrize("name", TRAINERS)
def test_the_card_carries_paper_and_citation(rows, make_trainer, name):
    def accuracy(completions, **columns):
        return [1.0] * len(completions)

    options = {"ral": {"num_iterations": 2}, "attn_distill": {"teacher_model_name_or_path": "tiny"}}
    trainer = make_trainer(rows["text"], cls=TRAINERS[name], reward=accuracy, **options.get(name, {}))
    trainer.create_model_card(model_name="seen")
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "# Model Card for seen" in card
    assert f"This model was trained with {trainer._name}" in card
    assert f"https://huggingface.co/papers/{PAPERS[name]}" in card
    assert f"arXiv:{PAPERS[name]}" in card
    assert "trl-perception" in card


def card_of(trainer):
    trainer.create_model_card(model_name="seen")
    return ModelCard.load(Path(trainer.args.output_dir) / "README.md")


def test_a_card_that_cannot_be_completed_is_found_before_training(rows, make_trainer, tmp_path, monkeypatch):
    """TRL's own template is accepted (every trainer here); a template that lacks a required part is reported immediately."""
    (tmp_path / "templates").mkdir()
    template = (files("trl") / "templates" / "lm_model_card.md").read_text()
    (tmp_path / "templates" / "lm_model_card.md").write_text(template.replace("Framework versions", "Versions"))
    monkeypatch.setattr("trl_perception.reports.card.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="has not the parts that this package completes"):
        make_trainer(rows["text"])


def test_a_card_says_what_was_done_and_what_came_of_it(rows, make_trainer):
    trainer = make_trainer(rows["video"], freeze_vision_tower=True, max_steps=2)
    trainer.origin = ORIGIN
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert "reward_curve" not in card_of(trainer).text
    for name in ("reward_curve.png", "report.html"):
        (folder / name).touch()
    text = card_of(trainer).text
    before, after = (entry["reward"] for entry in trainer.state.log_history[:2])
    for said in (
        "![Reward over the steps of training](reward_curve.png)",
        "[report.html](report.html)",
        f"| `reward` | {before:.4g} | {after:.4g} |",
        "| `rewards/letter_variety/mean` |",
        "[org/clips](https://huggingface.co/datasets/org/clips), split `train[:10]`, 4 rows.",
        # freeze_vision_tower leaves the merger and the language model
        "| vision tower | 158,592 | frozen |",
        "| merger | 98,752 | 98,752 |",
        "```yaml\ntrainer: grpo\nmodel_name_or_path: org/base\n```",
        "```bash\ntrl-perception train --config mine.yaml\n```",
        "Hardware: CPU (",
        "1 process (`NO`), mixed precision `no`.",
        "- trl_perception: ",
        "- TRL: 1.16",
        "Cite TRL as:",
        "`base`, a local model",
    ):
        assert said in text, said
    for unsaid in ("[None]", "time machine", "/data/models", 'pipeline("text-generation"'):
        assert unsaid not in text, unsaid


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("released", "starts at the video's largest position + 1 in this model, as in the released one, in vLLM"),
        ("transformers", "was trained with `position_rule: transformers`"),
    ],
)
def test_a_card_says_where_text_behind_a_video_stands(rows, make_trainer, rule, said):
    assert said in card_of(make_trainer(rows["text"], position_rule=rule)).text


def test_metadata_are_what_the_hub_knows(rows, make_trainer):
    trainer = make_trainer(rows["video"])
    trainer.origin = ORIGIN
    trainer.model.config._name_or_path = "org/base"
    data = card_of(trainer).data
    assert data.to_dict() == {
        "base_model": "org/base",
        "datasets": "org/clips",
        "library_name": "transformers",
        "model_name": "seen",
        "tags": data.tags,
        "pipeline_tag": "video-text-to-text",
    }
    assert {"generated_from_trainer", "trl", "grpo", "trl-perception"} == set(data.tags)
    assert ModelCardData(**data.to_dict()).to_yaml() == data.to_yaml()
    # A second card, written by a later checkpoint, equals the first one.
    assert card_of(trainer).text.count("## Quick start") == 1


def test_an_adapters_card_loads_it_onto_its_base(rows, make_trainer):
    trainer = make_trainer(rows["video"], extra={"peft_config": LoraConfig(r=4, target_modules=["q_proj"])})
    card = card_of(trainer)
    assert card.data.library_name == "peft"
    assert 'PeftModel.from_pretrained(model, "run")' in card.text
    assert "| language model | 926,848 | frozen |" in card.text
    parts = parts_trained(trainer.model)
    assert parts["adapter"][0] == parts["adapter"][1] > 0


@pytest.mark.parametrize(
    ("settings", "template"),
    [
        ({}, "none"),
        ({"video_fps": 1.0, "video_min_frames": 2, "video_max_frames": 2}, "think_answer"),
        ({"video_fps": 4.0, "video_max_pixels": 1568}, "video_r1"),
        ({"video_min_pixels": 12544, "video_total_pixels": 40000}, "none"),
        ({"chat_template_kwargs": {"chat_template": "{{ '<|video_pad|>' ~ thinking }}", "thinking": False}}, "none"),
    ],
)
def test_the_cards_code_prepares_a_clip_as_training_did(settings, template, rows, clips, make_trainer, monkeypatch):
    """The code gives as many tokens, visual and text, as the trainer's own preparation."""
    trainer = make_trainer(rows["video"], **settings)
    trainer.origin = dataclasses.replace(ORIGIN, template=template)
    folder = Path(trainer.args.output_dir)
    trainer.save_model(str(folder), _internal_call=True)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(trainer).text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    shutil.copy(clips[0], "clip.mp4")
    ran = {}
    exec(code, ran)
    prompt = templated_prompt(message("What happens in this clip?", "video"), template, "free-form")
    (wanted,) = trainer._prompt_preparer([{"prompt": prompt, "videos": [clips[0]]}])
    assert ran["inputs"]["input_ids"][0].tolist() == wanted.input_ids
    assert ran["inputs"]["video_grid_thw"].tolist() == wanted.visual.video_grid_thw.tolist()


def test_a_trainer_of_ones_own_has_its_own_name(rows, make_trainer):
    class LastFrameTrainer(TRAINERS["appo"]):
        pass

    def accuracy(completions, **columns):
        return [1.0] * len(completions)

    text = card_of(make_trainer(rows["text"], cls=LastFrameTrainer, reward=accuracy)).text
    assert "This model was trained with LastFrame." in text
    assert "LastFrame is a trainer of its own (`LastFrameTrainer`) on top of APPO: [" in text
    assert f"https://huggingface.co/papers/{PAPERS['appo']}" in text


def test_means_before_and_after_by_hand():
    history = [{"step": i, "reward": float(i), "loss": 1.0, "appo/weight_mean": 2.0 * i} for i in range(1, 21)]
    history += [{"step": 5, "eval_reward": 0.25}, {"step": 20, "eval_reward": 0.75, "train_loss": 3.0}]
    # 20 steps, a tenth is 2: (1 + 2) / 2 and (19 + 20) / 2; two evaluations, a tenth is one
    assert before_and_after(history) == {
        "reward": (1.5, 19.5),
        "eval_reward": (0.25, 0.75),
        "appo/weight_mean": (3.0, 39.0),
    }
    assert before_and_after([]) == {}
