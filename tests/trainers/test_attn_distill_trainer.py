"""AttnDistillTrainer: its three terms and their gradients against the paper's formulas, its teachers, and runs."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.helpers import history
from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Update,
    assert_neutral,
    assert_refused,
    assert_runs,
    attention_policies,
    build,
    default_path,
    gkd,
    jensen_shannon,
    outcome,
    policy_terms,
    shaken,
    size_of,
    trained,
    weights_of,
)
from trl_perception import AttnDistillTrainer

ONE_UPDATE = {**OBJECTIVES["mixed"], **TWO_UPDATES, "num_iterations": 1, "max_steps": 1}


def other_teacher(make_trainer):
    """A model with other outputs and other attention, and its weights."""
    teacher = shaken(default_path(make_trainer), seed=1)
    return teacher, weights_of(teacher)


def assert_update(
    update, teacher, *, grpo=1.0, mu=1.0, gamma=0.5, mix=1.0, temperature=1.0, reduction="mean", **options
):
    """The update is grpo * GRPO + mu * divergence + gamma * JSD of attention. Returns the sizes of the last two."""
    sampled, taught = update.read(update.sampled_with), update.read(teacher)
    now = update.read(update.weights, grad=True)
    credit = [[a] * len(reading.ids) for a, reading in zip(update.advantages(), now, strict=True)]
    policy = [[grpo * loss for loss in of_one] for of_one in policy_terms(update, now, sampled, credit)]
    pairs = list(zip(now, taught, strict=True))
    said = update.mean_over_tokens(
        [[mu * value for value in gkd(s, t, mix=mix, temperature=temperature)] for s, t in pairs]
    )
    apart = [
        [
            gamma * jensen_shannon(p, q.detach())
            for p, q in zip(attention_policies(s, **options), attention_policies(t, **options), strict=True)
        ]
        for s, t in pairs
    ]
    if reduction == "mean":
        looked = update.mean_over_tokens(apart)
    else:
        looked = [[value / len(update.completions) for value in of_one] for of_one in apart]
    update.assert_losses(policy, said, looked)
    return size_of(said), size_of(looked)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_losses_and_gradients_are_the_papers(rows, make_trainer, kind):
    teacher, weights = other_teacher(make_trainer)
    settings = {**OBJECTIVES[kind], **TWO_UPDATES, "extra": {"teacher_model": teacher}}
    trainer = trained(build(make_trainer, rows[kind], AttnDistillTrainer, **settings))
    for step in (0, 1):
        said, looked = assert_update(Update(trainer, rows[kind], step), weights)
        assert said > 0.1
        assert looked > 1e-3


OPTIONS = {
    "forward divergence, sum over tokens": (
        {"gkd_mix": 0.0, "attn_reduction": "sum"},
        {"mix": 0.0, "reduction": "sum"},
    ),
    "between, at a temperature": ({"gkd_mix": 0.5, "gkd_temperature": 2.0}, {"mix": 0.5, "temperature": 2.0}),
    "mostly forward": ({"gkd_mix": 0.2, "gkd_weight": 3.0}, {"mix": 0.2, "mu": 3.0}),
    "no policy loss": ({"grpo_weight": 0.0, "attn_distill_weight": 2.0}, {"grpo": 0.0, "gamma": 2.0}),
    "half a policy loss": ({"grpo_weight": 0.5}, {"grpo": 0.5}),
    "attention alone": ({"gkd_weight": 0.0, "grpo_weight": 0.0}, {"mu": 0.0, "grpo": 0.0}),
    "distributions alone": ({"attn_distill_weight": 0.0}, {"gamma": 0.0}),
    "other rows": (
        {"attn_query": "predictor", "attn_keys": "visual", "attn_layers": 2, "attn_distill_weight": 5.0},
        {"attn_query": "predictor", "attn_keys": "visual", "attn_layers": 2, "gamma": 5.0},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_loss_as_it_says(rows, make_trainer, name):
    settings, expected = OPTIONS[name]
    teacher, weights = other_teacher(make_trainer)
    extra = {"teacher_model": teacher}
    trainer = trained(build(make_trainer, rows["mixed"], AttnDistillTrainer, **ONE_UPDATE, **settings, extra=extra))
    said, looked = assert_update(Update(trainer, rows["mixed"], 0), weights, **expected)
    assert (said > 1e-3) == (expected.get("mu") != 0.0)
    assert (looked > 1e-3) == (expected.get("gamma") != 0.0)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_has_nothing_to_learn_from_its_copy(rows, make_trainer, bf16):
    student = shaken(default_path(make_trainer))
    extra = {"teacher_model": copy.deepcopy(student)}
    settings = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-3, "bf16": bf16}
    trainer = trained(build(make_trainer, rows["video"], AttnDistillTrainer, model=student, extra=extra, **settings))
    said, looked = history(trainer, "attn_distill/gkd", "attn_distill/jsd")
    assert abs(said[0]) < 1e-9
    assert 0 <= looked[0] < 1e-9
    assert abs(trainer.penalties[0]) < 1e-9
    assert min(said[1], looked[1], trainer.penalties[1]) > 1e-3


@pytest.mark.parametrize("trained_too", [None, ["lm_head"]])
def test_an_adapter_learns_from_its_base(rows, make_trainer, trained_too):
    """Also where the adapter brings a head of its own (`modules_to_save`): the base as teacher uses its own head."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=trained_too)
    settings = {**OBJECTIVES["mixed"], **TWO_UPDATES, "learning_rate": 1e-2, "attn_distill_weight": 20.0}
    trainer = build(make_trainer, rows["mixed"], AttnDistillTrainer, **settings, extra={"peft_config": lora})
    base = weights_of(trainer.model, adapter=False)
    trained(trainer)
    first, second = Update(trainer, rows["mixed"], 0), Update(trainer, rows["mixed"], 1)
    assert max(assert_update(first, base, gamma=20.0)) < 1e-12  # an adapter starts at zero
    assert min(assert_update(second, base, gamma=20.0)) > 1e-3
    assert torch.equal(second.weights["lm_head.weight"], base["lm_head.weight"]) == (trained_too is None)
    for name, weight in weights_of(trainer.model, adapter=False).items():
        assert torch.equal(weight, base[name])


def test_a_larger_padded_vocabulary_is_cut(rows, make_trainer):
    teacher, _ = other_teacher(make_trainer)
    teacher.resize_token_embeddings(teacher.config.get_text_config().vocab_size + 8, mean_resizing=False)
    with torch.no_grad():
        teacher.lm_head.weight[-8:] = 10.0  # would take the mass if it counted
    weights = weights_of(teacher)
    extra = {"teacher_model": teacher}
    trainer = trained(build(make_trainer, rows["mixed"], AttnDistillTrainer, **ONE_UPDATE, extra=extra))
    update = Update(trainer, rows["mixed"], 0)
    assert len(weights["lm_head.weight"]) == len(update.weights["lm_head.weight"]) + 8
    said, _ = assert_update(update, weights)
    assert said > 0.1


def test_a_teacher_by_name_is_the_teacher_as_an_object(rows, make_trainer):
    path = default_path(make_trainer)
    settings = {"max_steps": 2, "num_generations": 2}
    by_name = outcome(make_trainer, rows["mixed"], AttnDistillTrainer, teacher_model_name_or_path=path, **settings)
    extra = {"teacher_model": AutoModelForImageTextToText.from_pretrained(path)}
    as_object = outcome(make_trainer, rows["mixed"], AttnDistillTrainer, extra=extra, **settings)
    for mine, theirs in zip(by_name, as_object, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
        assert all(value > 0.1 for value in mine)


def test_the_teacher_is_frozen_and_stays_as_it_was(rows, make_trainer):
    teacher, weights = other_teacher(make_trainer)
    teacher.train()
    settings = {"max_steps": 2, "learning_rate": 0.1, "extra": {"teacher_model": teacher}}
    trainer = trained(build(make_trainer, rows["video"], AttnDistillTrainer, **settings))
    assert not trainer.teacher.training
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    for name, weight in weights_of(trainer.teacher).items():
        assert torch.equal(weight, weights[name])
    assert not torch.equal(weights_of(trainer.model)["lm_head.weight"], trainer.seen[0].weights["lm_head.weight"])


def test_teacher_options_reach_its_loading(rows, make_trainer):
    path = default_path(make_trainer)
    kwargs = {"attn_implementation": "eager", "dtype": "bfloat16"}
    settings = {"teacher_model_name_or_path": path, "teacher_model_init_kwargs": kwargs, "max_steps": 1}
    trainer = trained(build(make_trainer, rows["video"], AttnDistillTrainer, **settings))
    assert trainer.teacher.config._attn_implementation == "eager"
    assert trainer.teacher.dtype == torch.bfloat16
    assert trainer.penalties[0] > 1e-3
    plain = make_trainer(rows["video"], cls=AttnDistillTrainer, teacher_model_name_or_path=path)
    assert plain.teacher.dtype == plain.model.dtype
    with pytest.raises(ValueError, match="99 attention layers are asked for"):
        make_trainer(rows["video"], cls=AttnDistillTrainer, teacher_model_name_or_path=path, attn_layers=99)


def test_a_teacher_with_another_vocabulary_is_refused(rows, make_trainer, tmp_path):
    path = default_path(make_trainer)
    AutoModelForImageTextToText.from_pretrained(path).save_pretrained(tmp_path / "teacher")
    processor = AutoProcessor.from_pretrained(path)
    size = len(processor.tokenizer)
    processor.tokenizer.add_tokens(["<other>"])
    processor.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=rf"another vocabulary than the student \(sizes {size + 1} and {size}\)"):
        make_trainer(rows["video"], cls=AttnDistillTrainer, teacher_model_name_or_path=str(tmp_path / "teacher"))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision", "patch_size", 16),
        ("vision", "spatial_merge_size", 1),
        ("vision", "temporal_patch_size", 1),
        ("", "video_token_id", 9),
        ("", "image_token_id", 9),
        ("text", "vocab_size", 100),
    ],
)
def test_a_teacher_that_sees_or_speaks_otherwise_is_refused(rows, make_trainer, part, name, value):
    teacher, _ = other_teacher(make_trainer)
    config = {"vision": teacher.config.vision_config, "text": teacher.config.text_config, "": teacher.config}[part]
    setattr(config, name, value)
    words = "The teacher's head has 100 tokens" if part == "text" else rf"{name} is \d+ for the student and {value} for"
    with pytest.raises(ValueError, match=words):
        make_trainer(rows["video"], cls=AttnDistillTrainer, extra={"teacher_model": teacher})


def test_no_teacher_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match=r"No teacher\. Set teacher_model_name_or_path, pass teacher_model"):
        make_trainer(rows["video"], cls=AttnDistillTrainer)


def test_reentrant_checkpointing_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match=r"AttnDistillTrainer.*reentrant.*gradient_checkpointing_kwargs"):
        make_trainer(
            rows["video"],
            cls=AttnDistillTrainer,
            teacher_model_name_or_path=default_path(make_trainer),
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )


def test_weights_of_0_are_grpo(rows, make_trainer):
    neutral = {"gkd_weight": 0.0, "attn_distill_weight": 0.0}
    path = default_path(make_trainer)
    assert_neutral(make_trainer, rows["mixed"], AttnDistillTrainer, neutral, {}, teacher_model_name_or_path=path)


def test_text_prompts_have_no_token_weights(rows, make_trainer):
    teacher, weights = other_teacher(make_trainer)
    settings = {**ONE_UPDATE, "extra": {"teacher_model": teacher}}
    trainer = trained(build(make_trainer, rows["text"], AttnDistillTrainer, **settings))
    assert all("token_weights" not in seen.inputs for seen in trainer.seen)
    assert_update(Update(trainer, rows["text"], 0), weights)


def test_signals_come_once_a_rollout_from_complete_groups(rows, make_trainer):
    teacher, _ = other_teacher(make_trainer)
    settings = {**OBJECTIVES["video"], **TWO_UPDATES, "max_steps": 4, "extra": {"teacher_model": teacher}}
    trainer = trained(build(make_trainer, rows["video"], AttnDistillTrainer, **settings))
    # 4 updates of 2 iterations are 2 rollouts of a group each, which the teacher reads once
    assert len(trainer.seen) == 8
    assert [len(group.completion_ids) for group in trainer.groups] == [4, 4]
    assert trainer.views == [None, None]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"grpo_weight": -1.0}, "grpo_weight"),
        ({"gkd_weight": -1.0}, "gkd_weight"),
        ({"attn_distill_weight": -1.0}, "attn_distill_weight"),
        ({"gkd_mix": -0.1}, "gkd_mix"),
        ({"gkd_mix": 1.1}, "gkd_mix"),
        ({"gkd_temperature": 0.0}, "gkd_temperature"),
        ({"attn_reduction": "max"}, "attn_reduction"),
        ({"attn_layers": 0}, "attn_layers"),
        ({"attn_query": "key"}, "attn_query"),
        ({"attn_keys": "text"}, "attn_keys"),
        (
            {"grpo_weight": 0.0, "gkd_weight": 0.0, "attn_distill_weight": 0.0},
            "grpo_weight, gkd_weight and attn_distill_weight are all 0",
        ),
        ({"teacher_load_in_4bit": True, "teacher_load_in_8bit": True}, "teacher_load_in_4bit and teacher_load_in_8bit"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad, words):
    assert_refused(tmp_path, AttnDistillTrainer, bad, words)


@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run):
    teacher = {} if run == "adapter" else {"teacher_model": other_teacher(make_trainer)[0]}
    trainer = assert_runs(make_trainer, rows, AttnDistillTrainer, run, "attn_distill/jsd", extra=teacher)
    assert history(trainer, "attn_distill/gkd")[0]
