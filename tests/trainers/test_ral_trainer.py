"""RALTrainer: the attention term, losses and gradients against the paper's formulas, its options, schedules and runs."""

import pytest
import torch
from peft import LoraConfig

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
    jensen_shannon,
    outcome,
    policy_terms,
    shaken,
    size_of,
    trained,
    weights_of,
)
from trl_perception import GRPOVideoTrainer, RALConfig, RALTrainer

ADAPTER = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
# A learning rate that changes attention, and a weight that makes its term as large as the policy loss.
LIVELY = {**TWO_UPDATES, "learning_rate": 1e-4}
WEIGHT = 300.0
STALE = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "num_iterations": 1}


def divergences(now, then, **options):
    """JSD(p_t || p_then_t) of each token of each completion."""
    return [
        [
            jensen_shannon(p, q.detach())
            for p, q in zip(attention_policies(a, **options), attention_policies(b, **options), strict=True)
        ]
        for a, b in zip(now, then, strict=True)
    ]


def assert_update(update, then, weight, *, reference=None, **options):
    """The update is GRPO's, plus weight * mean_t A JSD(p_t || p_then_t). Returns the size of that term."""
    sampled, far = update.read(update.sampled_with), reference and update.read(reference)
    compared = update.read(then)
    now = update.read(update.weights, grad=True)
    advantages = update.advantages()
    policy = policy_terms(
        update, now, sampled, [[a] * len(r.ids) for a, r in zip(advantages, now, strict=True)], reference=far
    )
    pairs = zip(advantages, divergences(now, compared, **options), strict=True)
    attention = update.mean_over_tokens([[weight * a * value for value in of_one] for a, of_one in pairs])
    update.assert_losses(policy, attention)
    return size_of(attention)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_losses_and_gradients_are_the_papers(rows, make_trainer, kind):
    settings = {**OBJECTIVES[kind], **LIVELY, "attn_weight": WEIGHT}
    trainer = trained(build(make_trainer, rows[kind], RALTrainer, **settings))
    first, second = Update(trainer, rows[kind], 0), Update(trainer, rows[kind], 1)
    assert assert_update(first, first.sampled_with, WEIGHT) < 1e-12
    assert assert_update(second, second.sampled_with, WEIGHT) > 1e-3
    assert trainer.views == []  # the first forward gave the rollout policy's rows


def test_a_first_visit_after_a_step_uses_the_rollout_policys_rows(rows, make_trainer):
    """Two micro-batches a rollout and a step after each: the second is stale when it is first seen."""
    settings = {**LIVELY, **STALE, "attn_weight": WEIGHT}
    trainer = trained(build(make_trainer, rows["mixed"], RALTrainer, **settings, num_generations=2))
    first, second = Update(trainer, rows["mixed"], 0), Update(trainer, rows["mixed"], 1)
    assert second.sampled_at == 0
    assert assert_update(first, first.sampled_with, WEIGHT) < 1e-12
    assert assert_update(second, second.sampled_with, WEIGHT) > 1e-3
    rollout, now = second.read(second.sampled_with), second.read(second.weights)
    moved = 0.0
    for completion, reading, later in zip(second.completions, rollout, now, strict=True):
        stored = second.micro[0].inputs["reference_policy"][completion.index]
        pairs = zip(attention_policies(reading), attention_policies(later), strict=True)
        for t, (expected, other) in enumerate(pairs):
            # rows go over the prompt without padding and the completion; later positions get nothing
            torch.testing.assert_close(stored[t, : len(expected)].double(), expected, atol=1e-5, rtol=0)
            assert not stored[t, len(expected) :].any()
            moved = max(moved, (expected - other).abs().max().item())
    assert moved > 1e-3
    # a rollout of four groups was scored for it, each once
    assert len(trainer.views) == len(trainer.groups) == 4


OPTIONS = {
    "predictor's row": {"attn_query": "predictor"},
    "visual keys": {"attn_keys": "visual"},
    "two layers": {"attn_layers": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_reads_the_rows_that_it_says(rows, make_trainer, name):
    settings = {**OBJECTIVES["mixed"], **LIVELY, "attn_weight": WEIGHT, **OPTIONS[name]}
    trainer = trained(build(make_trainer, rows["mixed"], RALTrainer, **settings))
    update = Update(trainer, rows["mixed"], 1)
    size = assert_update(update, update.sampled_with, WEIGHT, **OPTIONS[name])
    plain, changed = (
        divergences(update.read(update.weights), update.read(update.sampled_with), **options)
        for options in ({}, OPTIONS[name])
    )
    assert size > 1e-3
    assert any(abs(a - b) > 1e-5 for pair in zip(plain, changed, strict=True) for a, b in zip(*pair, strict=True))


def test_rows_of_half_the_bytes_round_the_second_update_alone(rows, make_trainer):
    settings = {"num_iterations": 2, "learning_rate": 1e-3, "max_steps": 2, "attn_weight": WEIGHT}
    exact, half = (
        trained(build(make_trainer, rows["video"], RALTrainer, **settings, attn_rows_dtype=dtype)).penalties
        for dtype in ("float32", "float16")
    )
    assert exact[0] == half[0] == 0.0  # the policy is compared with itself, not with its rounding
    assert exact[1] != half[1]
    assert half[1] == pytest.approx(exact[1], rel=1e-2)


def test_against_the_reference_model_it_acts_from_the_first_step(rows, make_trainer):
    settings = {**OBJECTIVES["mixed"], **TWO_UPDATES, "num_iterations": 1, "max_steps": 1}
    trainer = build(make_trainer, rows["mixed"], RALTrainer, **settings, attn_reference="ref", beta=0.1)
    reference = weights_of(trainer.ref_model)
    trained(trainer)
    update = Update(trainer, rows["mixed"], 0)
    assert assert_update(update, reference, 1.0, reference=reference) > 1e-3
    assert len(trainer.views) == 4  # four groups, once each


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_against_the_base_of_an_adapter(rows, make_trainer, beta):
    """The reference is the model without its adapter, with or without a KL term."""
    settings = {**OBJECTIVES["mixed"], **TWO_UPDATES, "learning_rate": 3e-3, "attn_reference": "ref", "beta": beta}
    trainer = build(make_trainer, rows["mixed"], RALTrainer, **settings, attn_weight=WEIGHT, extra=ADAPTER)
    base = weights_of(trainer.model, adapter=False)
    trained(trainer)
    for step in (0, 1):
        update = Update(trainer, rows["mixed"], step)
        size = assert_update(update, base, WEIGHT, reference=base if beta else None)
        assert (size > 1e-3) == (step == 1)  # an adapter starts at zero
    for name, weight in weights_of(trainer.model, adapter=False).items():
        assert torch.equal(weight, base[name])


def test_the_term_is_exactly_zero_until_the_policy_has_moved(rows, make_trainer):
    settings = {"num_iterations": 2, "learning_rate": 1e-3, "max_steps": 4, "attn_weight": 10.0}
    trainer = trained(build(make_trainer, rows["video"], RALTrainer, **settings))
    assert [penalty == 0.0 for penalty in trainer.penalties] == [True, False, True, False]
    jsd, positive, negative = history(trainer, "ral/jsd", "ral/jsd_positive", "ral/jsd_negative")
    assert jsd[0] == positive[0] == negative[0] == jsd[2] == 0.0
    assert min(jsd[1], positive[1], negative[1], jsd[3]) > 1e-4
    # with its gradient: the first update is GRPO's, the second is not
    plain, with_term = (
        outcome(make_trainer, rows["video"], cls, num_iterations=2, max_steps=2, learning_rate=1e-3, **weight)
        for cls, weight in ((GRPOVideoTrainer, {}), (RALTrainer, {"attn_weight": 10.0}))
    )
    for of_plain, of_term in zip(plain, with_term, strict=True):
        assert of_term[0] == pytest.approx(of_plain[0], abs=1e-6)
        assert abs(of_term[1] - of_plain[1]) > 1e-3


def test_metrics_are_means_over_tokens(rows, make_trainer):
    settings = {"num_generations": 4, "num_iterations": 2, "learning_rate": 1e-4, "max_steps": 2}
    trainer = trained(build(make_trainer, rows["video"], RALTrainer, **settings))
    update = Update(trainer, rows["video"], 1)
    now, then = update.read(update.weights), update.read(update.sampled_with)
    names = ("jsd", "jsd_positive", "jsd_negative", "visual_mass", "sink_mass", "attention_entropy")
    values = {name: [] for name in names}
    for reading, of_one, advantage in zip(now, divergences(now, then), update.advantages(), strict=True):
        values["jsd"] += of_one
        values["jsd_positive" if advantage > 0 else "jsd_negative"] += of_one
        for row in attention_policies(reading):
            seen = torch.tensor([i < reading.prompt and reading.kinds[i] != "text" for i in range(len(row))])
            values["visual_mass"].append(row[seen].sum())
            values["sink_mass"].append(row[0])
            values["attention_entropy"].append(-(row * row.log()).sum())
    for name, of_tokens in values.items():
        ((_, logged),) = history(trainer, f"ral/{name}")
        assert logged == pytest.approx(sum(float(v) for v in of_tokens) / len(of_tokens), abs=1e-4), name


def test_attn_weight_0_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], RALTrainer, {"attn_weight": 0.0}, {"attn_weight": 10 * WEIGHT})


def test_text_prompts_have_no_token_weights(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["text"], RALTrainer, **TWO_UPDATES, num_generations=2))
    assert all("token_weights" not in seen.inputs for seen in trainer.seen)
    update = Update(trainer, rows["text"], 1)
    assert_update(update, update.sampled_with, 1.0)
    assert history(trainer, "ral/visual_mass") == [[0.0, 0.0]]


def test_signals_come_once_a_rollout_from_complete_groups(rows, make_trainer):
    """Micro-batches of 2 cut groups of 4; late first visits and the reference cost one forward a group, not one a visit."""
    shared = {"per_device_train_batch_size": 2, "num_generations": 4, "num_iterations": 2, "learning_rate": 3e-5}
    late = {"gradient_accumulation_steps": 1, "max_steps": 8}
    against_reference = {"gradient_accumulation_steps": 4, "max_steps": 2, "attn_reference": "ref", "beta": 0.1}
    for schedule in (late, against_reference):
        settings = {**shared, **schedule, "steps_per_generation": 4}
        trainer = trained(build(make_trainer, rows["video"], RALTrainer, **settings))
        assert len(trainer.seen) == 8
        assert [len(group.completion_ids) for group in trainer.groups] == [4, 4]
        assert trainer.views == [None, None]


@pytest.mark.parametrize(
    ("schedule", "acts"),
    [
        ({}, False),
        ({"gradient_accumulation_steps": 4}, False),
        # both iterations of a micro-batch lie in one accumulation window
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 2, "num_iterations": 2}, False),
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 2, "num_iterations": 3}, True),
        ({"num_iterations": 2}, True),
        (STALE, True),
        ({"attn_weight": 0.0}, True),
        ({"attn_reference": "ref"}, True),
    ],
    ids=str,
)
def test_a_schedule_in_which_the_term_can_never_act_is_refused(tmp_path, schedule, acts):
    schedule = {"num_generations": 4, "per_device_train_batch_size": 4, **schedule}
    if acts:
        RALConfig(str(tmp_path), use_cpu=True, bf16=False, **schedule)
    else:
        assert_refused(tmp_path, RALTrainer, schedule, "could never act. Set num_iterations to 2.*steps_per_generation")


def test_a_reference_that_is_not_there_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match=r"needs a reference model.*Set beta above 0.*peft_config"):
        make_trainer(rows["video"], cls=RALTrainer, attn_reference="ref")


def test_the_term_does_not_measure_dropout(rows, make_trainer):
    """With an adapter with dropout 0.5 and a learning rate of 0, two passes over a rollout have the same policy."""
    model = shaken(default_path(make_trainer))
    dropping = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], lora_dropout=0.5, init_lora_weights=False)
    settings = {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.0, "model": model}
    trainer = build(make_trainer, rows["video"], RALTrainer, **settings, extra={"peft_config": dropping})
    assert trainer.args.disable_dropout
    assert history(trained(trainer), "ral/jsd") == [[0.0, pytest.approx(0.0, abs=1e-9)]]


def test_dropout_is_refused(rows, make_trainer):
    model = shaken(default_path(make_trainer))
    dropping = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.05)}
    settings = {"cls": RALTrainer, "num_iterations": 2}
    with pytest.raises(ValueError, match=r"would measure dropout. Leave disable_dropout=True"):
        make_trainer(rows["video"], **settings, disable_dropout=False, extra=dropping)
    grpo = make_trainer(rows["video"], **settings, disable_dropout=False, attn_weight=0.0, extra=dropping)
    assert grpo.taps == ()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="set attention_dropout of the model's configuration to 0"):
        make_trainer(rows["video"], **settings, model=model)


def test_reentrant_checkpointing_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match=r"reentrant.*gradient_checkpointing_kwargs=\{'use_reentrant': False\}"):
        make_trainer(
            rows["video"],
            cls=RALTrainer,
            num_iterations=2,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )


@pytest.mark.parametrize(
    "bad",
    [
        {"attn_layers": 0},
        {"attn_query": "key"},
        {"attn_keys": "text"},
        {"attn_rows_dtype": "int8"},
        {"attn_weight": -1.0},
        {"attn_reference": "new"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, RALTrainer, {"num_iterations": 2, **bad}, next(iter(bad)))


def test_more_layers_than_there_are_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match="99 attention layers are asked for"):
        make_trainer(rows["video"], cls=RALTrainer, num_iterations=2, attn_layers=99)


@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run):
    trainer = assert_runs(make_trainer, rows, RALTrainer, run, "ral/jsd", num_iterations=2)
    assert history(trainer, "ral/jsd")[0][-1] > 0
