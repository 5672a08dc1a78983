"""NaN and infinity in loss, gradient and rewards: the run stops with a dump that can be replayed, or skips the step."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback

from tests.helpers import history, letter_variety
from trl_perception import GRPOVideoConfig, GRPOVideoTrainer, KTRTrainer, PGPOTrainer, RALTrainer, from_pretrained
from trl_perception.callbacks.nonfinite import NonFiniteGuard
from trl_perception.objectives import Penalty, TokenWeights
from trl_perception.trainers import NonFiniteError, replay


class BadWeights(GRPOVideoTrainer):
    """One token weight of the first completion is infinite, in the rollouts of the steps named."""

    bad_steps: tuple = (1,)

    def token_weights(self, group):
        weights = group.completion_mask.float()
        if self.state.global_step in self.bad_steps:
            weights[0, 0] = math.inf
        return TokenWeights(weights, {})


class BadPenalty(GRPOVideoTrainer):
    """A penalty that is NaN at the steps named."""

    bad_steps: tuple = (1,)

    def penalty(self, inputs):
        bad = self.model.training and self.state.global_step in self.bad_steps
        some = next(p for p in self.model.parameters() if p.requires_grad).sum()
        return Penalty(some * (math.nan if bad else 0.0), {})


class BadGradient(GRPOVideoTrainer):
    """A penalty of 0 whose gradient is NaN: d sqrt(u) / du at 0 is infinite, times 0."""

    bad_steps: tuple = (1,)

    def penalty(self, inputs):
        weight = dict(self.model.named_parameters())["model.language_model.norm.weight"]
        zero = weight.sum() * 0
        return Penalty(zero.sqrt() if self.state.global_step in self.bad_steps else zero, {})


def weights_of(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def moments_of(trainer):
    states = [trainer.optimizer.state[p] for p in trainer.model.parameters()]
    return [value.clone() for state in states for _, value in sorted(state.items())]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def stopped(trainer):
    """(error, folders of the dumped micro-batches) of a run that must stop."""
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    return error.value, sorted(error.value.folder.glob("process-*/micro-batch-*"))


class Before(TrainerCallback):
    """Keeps a copy of weights and moments at the beginning of each step."""

    def __init__(self, trainer, kept):
        self.trainer, self.kept = trainer, kept

    def on_step_begin(self, args, state, control, **kwargs):
        self.kept.append((weights_of(self.trainer), moments_of(self.trainer) if state.global_step else []))


def named(rows):
    return [{**row, "id": f"clip-{number}"} for number, row in enumerate(rows)]


def test_a_loss_that_is_not_finite_stops_and_names_step_samples_and_term(make_trainer, rows):
    trainer = make_trainer(named(rows["video"][:1]), cls=BadWeights, hub_token="hf_secret")
    error, (folder,) = stopped(trainer)
    assert trainer.state.global_step == 1
    for words in (
        "step 1: the loss is not finite on process(es) 0 of 1",
        "micro-batch 1 of 1 here (sample clip-0): ",
        "advantages (1 of",
        "policy loss (",
        "on_nonfinite='skip'",
        str(error.folder),
    ):
        assert words in str(error)
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["step"] == 1
    assert facts["terms"]["loss"] in ("nan", "inf", "-inf")
    assert [sample["name"] for sample in facts["samples"]] == ["sample clip-0"] * 4
    assert facts["samples"][0]["media"] == rows["video"][0]["videos"]
    assert "Colour of scene 1?" in json.dumps(facts["samples"][0]["prompt"])
    texts = [sample["completion"].replace("<|im_end|>", "") for sample in facts["samples"]]
    rewards = [sample["rewards"]["letter_variety"] for sample in facts["samples"]]
    assert rewards == letter_variety([[{"content": text}] for text in texts])
    assert facts["settings"]["max_steps"] == 5
    assert "hf_secret" not in json.dumps(facts)


def test_a_penalty_is_named_apart_from_the_policy_loss(make_trainer, rows):
    error, _ = stopped(make_trainer(rows["text"], cls=BadPenalty))
    assert "penalty (nan), loss (nan)" in str(error)
    assert "policy loss" not in str(error)


def test_a_gradient_that_is_not_finite_names_its_parameters_before_anything_changes(make_trainer, rows):
    trainer = make_trainer(rows["text"], cls=BadGradient)
    before = []
    trainer.add_callback(Before(trainer, before))
    error, folders = stopped(trainer)
    assert "the gradient is not finite on process(es) 0 of 1" in str(error)
    # all others have the gradient of the policy loss, which is finite
    assert "gradient not finite in model.language_model.norm.weight." in str(error)
    assert len(folders) == 1
    assert same(before[-1][0], weights_of(trainer))
    assert same(before[-1][1], moments_of(trainer))


@pytest.mark.parametrize("cls", [BadWeights, BadPenalty, BadGradient])
def test_a_dump_replays_to_the_same_value(make_trainer, rows, cls, tmp_path):
    _, (folder,) = stopped(make_trainer(rows["video"], cls=cls))
    fresh = make_trainer(rows["video"], cls=cls, model=str(folder.parents[1] / "weights"))
    seen = replay(fresh, folder)
    for term, value in seen.dumped_terms.items():
        assert seen.terms[term] == pytest.approx(value, abs=0, nan_ok=True), term
    assert torch.equal(seen.logps, seen.dumped_logps)
    if cls is BadGradient:
        assert math.isfinite(seen.terms["loss"])
        assert seen.gradients == ["model.language_model.norm.weight"]
        assert not seen.findings
    else:
        assert not math.isfinite(seen.terms["loss"])
        assert seen.findings
    assert fresh.state.global_step == 0
    assert all(p.grad is None for p in fresh.model.parameters())


class Dumping:
    """Dumps the last micro-batch of the run with the method that is used on a stop, before the optimizer step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.check_step, self._guard.check_step = self._guard.check_step, self.dump_and_check

    def dump_and_check(self, model, context):
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
        folder, last = Path(self.args.output_dir), {0: self._guard.records[-1]}
        self._guard._dump(model, last, folder / "healthy", context, "", with_weights=True)
        return self.check_step(model, context)


HEALTHY = {
    "grpo": (GRPOVideoTrainer, {"group_forward": "on"}),
    "pgpo": (PGPOTrainer, {"group_forward": "on"}),  # credit is assigned in the update: groups are passed with the rows
    "ktr": (KTRTrainer, {"group_forward": "off"}),
    "ral": (RALTrainer, {"group_forward": "off", "num_iterations": 2}),  # rollout signals passed with the rows
    "accumulated": (GRPOVideoTrainer, {"gradient_accumulation_steps": 2}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in ("grpo", "ktr"))) for case in HEALTHY]
)
def test_a_healthy_micro_batch_replays_to_the_same_loss_and_gradient(make_trainer, rows, case):
    base, options = HEALTHY[case]
    cls = type(base.__name__, (Dumping, base), {})
    settings = {**options, "max_steps": 2, "beta": 0.1}
    trainer = make_trainer(rows["video"], cls=cls, **settings)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "healthy"
    fresh = make_trainer(rows["video"], cls=cls, model=str(folder / "weights"), **settings)
    seen = replay(fresh, folder / "process-0" / "micro-batch-0")
    assert seen.dumped_terms["loss"] != 0
    assert seen.terms == pytest.approx(seen.dumped_terms, abs=1e-7)
    torch.testing.assert_close(seen.logps, seen.dumped_logps, atol=1e-6, rtol=0)
    assert not seen.gradients
    if case != "accumulated":  # that run's gradient is of two micro-batches
        assert seen.gradient_norm == pytest.approx(trainer.norm, rel=1e-4)


def test_adapters_are_dumped_and_replayed(make_trainer, rows):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(rows["text"], cls=BadWeights, extra={"peft_config": config})
    _, (folder,) = stopped(trainer)
    weights = folder.parents[1] / "weights"
    assert not (weights / "model.safetensors").exists()
    model = PeftModel.from_pretrained(from_pretrained("tiny")[0], weights, is_trainable=True)
    seen = replay(make_trainer(rows["text"], cls=BadWeights, model=model), folder)
    assert torch.equal(seen.logps, seen.dumped_logps)
    assert seen.terms == pytest.approx(seen.dumped_terms, nan_ok=True)


def test_another_trainer_does_not_replay_a_dump(make_trainer, rows):
    _, (folder,) = stopped(make_trainer(rows["text"], cls=BadPenalty))
    with pytest.raises(ValueError, match="was dumped by BadPenalty; the trainer is a BadWeights"):
        replay(make_trainer(rows["text"], cls=BadWeights), folder)


def test_a_dump_holds_no_pickle(make_trainer, rows):
    error, _ = stopped(make_trainer(rows["mixed"], cls=BadPenalty, per_device_train_batch_size=8))
    kinds = {path.suffix for path in error.folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".txt"}


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_disk_that_refuses_the_dump_does_not_hide_what_it_is_about(make_trainer, rows, policy, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "nonfinite").write_text("in the way")
    trainer = make_trainer(rows["text"], cls=BadWeights, on_nonfinite=policy, max_steps=2)
    words = r"step 1: the loss is not finite.*advantages \(1 of.*the dump could not be written: .*nonfinite"
    if policy == "error":
        with pytest.raises(NonFiniteError, match=words):
            trainer.train()
    else:
        with pytest.warns(UserWarning, match=words):
            trainer.train()


def test_a_process_that_dies_over_its_dump_does_not_hide_what_was_found(make_trainer, rows, monkeypatch):
    def gone(objects):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("trl_perception.callbacks.nonfinite.guard.gather_object", gone)
    trainer = make_trainer(rows["text"], cls=BadWeights)
    error, _ = stopped(trainer)
    assert "the loss is not finite" in str(error)
    assert "another process ended before its part was: Connection closed by peer" in str(error)
    assert (error.folder / "weights" / "model.safetensors").exists()


@pytest.mark.parametrize(("cls", "accumulation"), [(BadWeights, 1), (BadPenalty, 2), (BadGradient, 2)])
def test_a_skipped_step_changes_neither_weights_nor_optimizer(make_trainer, rows, cls, accumulation):
    before = []
    trainer = make_trainer(
        rows["text"],
        cls=cls,
        on_nonfinite="skip",
        max_steps=3,
        gradient_accumulation_steps=accumulation,
        weight_decay=0.1,
    )
    trainer.add_callback(Before(trainer, before))
    with pytest.warns(UserWarning, match=r"step 1: the (loss|gradient) .* the step is left out"):
        trainer.train()
    (_, _), (weights, moments), (weights_after, moments_after) = before
    assert moments
    assert same(weights, weights_after)
    assert same(moments, moments_after)
    assert not same(weights, weights_of(trainer))  # the step after it is taken
    assert history(trainer, "nonfinite/skipped") == [[0.0, 1.0, 0.0]]
    # the schedule follows the number of the step: 3 steps, linear to 0
    assert history(trainer, "learning_rate") == [[1e-3, pytest.approx(1e-3 * 2 / 3), pytest.approx(1e-3 / 3)]]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_skipping_is_bounded(make_trainer, rows):
    class Always(BadPenalty):
        bad_steps = (0, 1, 2, 3, 4)

    trainer = make_trainer(rows["text"], cls=Always, on_nonfinite="skip", max_nonfinite_skips=2)
    with pytest.warns(UserWarning, match="left out"):
        error, folders = stopped(trainer)
    assert "after 2 steps in a row that were left out" in str(error)
    assert trainer.state.global_step == 2
    assert len(folders) == 1


def test_what_was_skipped_starts_from_zero_after_a_good_step(make_trainer, rows):
    class EveryOther(BadPenalty):
        bad_steps = (0, 2, 4)

    trainer = make_trainer(rows["text"], cls=EveryOther, on_nonfinite="skip", max_nonfinite_skips=1)
    with pytest.warns(UserWarning, match="left out"):
        trainer.train()
    assert history(trainer, "nonfinite/skipped") == [[1.0, 0.0, 1.0, 0.0, 1.0]]


def test_settings_are_checked():
    for name, value, words in (
        ("on_nonfinite", "ignore", "on_nonfinite is 'ignore'; 'error' or 'skip' wanted"),
        ("max_nonfinite_skips", 0, "max_nonfinite_skips is 0; a positive number"),
        ("reward_timeout", 0, "reward_timeout is 0; a positive number"),
    ):
        with pytest.raises(ValueError, match=words):
            GRPOVideoConfig("x", use_cpu=True, bf16=False, **{name: value})


class Scaled(TrainerCallback):
    """Adds a gradient scaler to the run, as float16 does."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.trainer.accelerator.scaler = scaler
        self.trainer.optimizer = AcceleratedOptimizer(self.trainer.optimizer.optimizer, scaler=scaler)


class BadConstant(BadPenalty):
    """A penalty that is NaN and has no gradient at all."""

    def penalty(self, inputs):
        return Penalty(super().penalty(inputs).loss.detach(), {})


@pytest.mark.parametrize("cls", [BadGradient, BadConstant])
def test_under_a_scaler_gradients_are_its_business_and_losses_ours(make_trainer, rows, cls):
    before = []
    policy = "error" if cls is BadGradient else "skip"
    trainer = make_trainer(rows["text"], cls=cls, on_nonfinite=policy, max_steps=3)
    trainer.add_callback(Scaled(trainer))
    trainer.add_callback(Before(trainer, before))
    trainer.train()
    (_, _), (weights, _), (weights_after, _) = before
    assert same(weights, weights_after)
    assert not same(weights, weights_of(trainer))
    if cls is BadConstant:
        assert history(trainer, "nonfinite/skipped") == [[0.0, 1.0, 0.0]]
    assert trainer.accelerator.scaler.get_scale() == 512.0  # halved once


def test_the_guard_needs_no_trainer(tmp_path):
    model, mask = torch.nn.Linear(2, 1), torch.tensor([[1, 1, 0]])
    args = SimpleNamespace(
        on_nonfinite="skip", max_nonfinite_skips=1, output_dir=tmp_path, to_dict=lambda: {"on_nonfinite": "skip"}
    )
    processor = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids.tolist())))
    guard = NonFiniteGuard(Accelerator(cpu=True), args, processor)
    inputs = {"completion_ids": torch.tensor([[5, 6, 0]]), "completion_mask": mask, "sample": [{"name": "sample a"}]}
    guard.record_term("policy loss", torch.tensor(math.nan))  # outside a micro-batch: of nothing
    with pytest.raises(KeyError), guard.recording(inputs):
        raise KeyError  # a loss that was not computed
    assert guard.records == []
    for value in (1.0, math.inf):
        with guard.recording(inputs):
            guard.record_logps(torch.zeros(1, 3))
            guard.record_term("loss", torch.tensor(value))
        model(torch.ones(1, 2)).sum().backward()
        if value == 1.0:
            assert guard.check_step(model, {"step": 0}) == {"nonfinite/skipped": 0.0}
            assert model.weight.grad is not None
    with pytest.warns(
        UserWarning, match=r"step 1: .*micro-batch 1 of 1 here \(sample a\): loss \(inf\); the step is left out"
    ):
        assert guard.check_step(model, {"step": 1}) == {"nonfinite/skipped": 1.0}
    assert model.weight.grad is None
    dumped = json.loads((tmp_path / "nonfinite/step-000001/process-0/micro-batch-0/facts.json").read_text())
    assert dumped["samples"] == [{"name": "sample a", "completion": "5 6"}]
    assert guard.skipped_in_a_row == 1


def test_evaluation_is_not_recorded(make_trainer, rows):
    class Never(BadPenalty):
        bad_steps = ()

    trainer = make_trainer(
        rows["text"], cls=Never, extra={"eval_dataset": Dataset.from_list(rows["text"])}, max_steps=1
    )
    trainer.evaluate()
    assert trainer._guard.records == []
    trainer.train()
    assert trainer._guard.records == []
