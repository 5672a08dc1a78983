"""Rollouts that make a method divide by zero: every loss and gradient stays finite, and is 0 where required.

The completions are scripted, one case per rollout, each trained on twice (the second time off-policy).
"""

import math
from pathlib import Path

import pytest
import torch

from tests.helpers import every_method, history
from trl_perception.trainers import TRAINERS
from trl_perception.trainers.rollout import RolloutBuilder

ZERO_WITHOUT_TEACHER = ("equal rewards",)
ZERO = ("left out", "truncated and masked")
A, B, C = 100, 101, 102  # ordinary tokens of the embedded model

# (completions of a group without <eos>, whether they end, their rewards)
CASES = {
    "ordinary": ([[A, B, C], [B], [C, A], [A, A, B]], True, [1.0, 0.0, 1.0, 0.0]),
    "equal rewards": ([[A, B, C], [B], [C, A], [A, A, B]], True, [1.0] * 4),
    "empty": ([[], [], [], []], True, [1.0, 0.0, 0.0, 0.0]),
    "one empty": ([[], [A, B], [C], [A, B, C, C]], True, [1.0, 0.0, 0.0, 0.0]),
    "one token": ([[A], [B], [C], [A]], False, [1.0, 0.0, 1.0, 0.0]),
    "truncated": ([[A] * 8, [B] * 8, [A, B] * 4, [C, A] * 4], False, [1.0, 0.0, 1.0, 0.0]),
    "left out": ([[A, B, C], [B], [C, A], [A, A, B]], True, [math.nan] * 4),
}

OPTIONS = every_method(
    appo={"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "scripted"},
    t_grpo={"accuracy_reward": "scripted"},
    vppo={"entropy_penalty": 0.0},
    attn_distill={"teacher_model_name_or_path": "tiny_teacher", "gkd_weight": 0.5, "grpo_weight": 1.0},
)
METHODS = {name: (name, options) for name, options in OPTIONS.items()} | {"ral_zero": ("ral", {"loss_type": "grpo"})}


class Scripted:
    """Samples the completions of each case in order, and keeps loss and gradients of every update."""

    script = ()
    rollouts = 0

    @property
    def case(self):
        return CASES[self.script[min(self.rollouts, len(self.script)) - 1]]

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        ids, logprobs = super()._generate_single_turn(
            prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
        )
        self.rollouts += num_generations == self.args.num_generations  # not for completions under a view
        completions, ends, _ = self.case
        end = [self._tokenizer.eos_token_id] if ends else []
        return [[*completions[row % self.num_generations], *end] for row in range(len(ids))], logprobs

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.check_step, self._guard.check_step = self._guard.check_step, self.keep_and_check

    def keep_and_check(self, model, context):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        record = self._guard.records[-1]
        terms = {name: value.item() for name, value in record.terms.items()}
        self.seen.append((self.script[self.rollouts - 1], terms, norm, record.inputs))
        return self.check_step(model, context)


def run(make_trainer, rows, name, cases, **settings):
    """(trainer, updates): (case, terms, gradient norm, inputs) of each, two a case."""
    method, options = METHODS[name]
    base = TRAINERS[method]
    cls = type(base.__name__, (Scripted, base), {"script": cases, "seen": None})

    def scripted(completions, **columns):
        values = trainer.case[2]
        return [values[index % trainer.num_generations] for index in range(len(completions))]

    defaults = {
        "num_iterations": 2,
        "per_device_train_batch_size": 8,
        "max_steps": 2 * len(cases),
        "on_nonfinite": "skip",
        "max_nonfinite_skips": 1,
        "learning_rate": 1e-4,
    }
    trainer = make_trainer(rows, cls=cls, reward=scripted, **{**defaults, **options, **settings})
    trainer.seen = []
    trainer.train()
    assert len(trainer.seen) == 2 * len(cases)
    assert [case for case, *_ in trainer.seen] == [case for case in cases for _ in range(2)]
    return trainer, trainer.seen


def mostly_slow(*fast):
    """All methods; those not named here are slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


def check(name, trainer, updates):
    assert sum(history(trainer, "nonfinite/skipped")[0]) == 0
    for case, terms, norm, _ in updates:
        assert all(math.isfinite(value) for value in terms.values()), (case, terms)
        assert math.isfinite(norm), case
        # no advantage, or no token that counts: nothing to learn. Two penalties do not depend on the reward.
        if case in ZERO or (case in ZERO_WITHOUT_TEACHER and name not in ("attn_distill", "papo")):
            assert terms["loss"] == 0.0, case
            assert norm == 0.0, case
        if case in ZERO_WITHOUT_TEACHER:
            assert terms["policy loss"] == 0.0
        if case in ("ordinary", "one empty", "one token", "truncated"):
            assert norm > 1e-3, case


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, "on") for name in ("appo", "ral")]
    + [pytest.param(name, "on", marks=pytest.mark.slow) for name in METHODS if name not in ("appo", "ral")]
    + [pytest.param(name, "off", marks=pytest.mark.slow) for name in METHODS],
)
def test_every_case_is_finite(make_trainer, rows, name, path):
    kinds = rows["video"][:1] + rows["text"][:1]
    trainer, updates = run(make_trainer, kinds, name, tuple(CASES), group_forward=path)
    check(name, trainer, updates)
    if name == "grpo":
        # Four times the same completion: sum_g A_g * d logp = 0, on-policy.
        first = next(norm for case, _, norm, _ in updates if case == "empty")
        assert first < 1e-4


@pytest.mark.parametrize("name", mostly_slow("attn_distill"))
def test_every_completion_truncated_and_masked_teaches_nothing(make_trainer, rows, name):
    cases = ("truncated", "one token", "ordinary")
    trainer, updates = run(make_trainer, rows["video"][:2], name, cases, mask_truncated_completions=True, beta=0.1)
    check(name, trainer, [(("truncated and masked" if case != "ordinary" else case), *rest) for case, *rest in updates])
    assert all(not inputs["completion_mask"].any() for case, *_, inputs in updates if case != "ordinary")


@pytest.mark.parametrize("name", mostly_slow("ral"))
def test_groups_of_two(make_trainer, rows, name):
    cases = ("ordinary", "equal rewards", "one empty", "left out")
    trainer, updates = run(
        make_trainer, rows["video"][:2], name, cases, num_generations=2, per_device_train_batch_size=4
    )
    check(name, trainer, updates)
    # rewards 1 and 0: mean 0.5, standard deviation over 2 - 1: 0.70711; +-0.5 / (0.70711 + 1e-4) = +-0.70701
    if name == "ral":
        _, _, _, inputs = updates[0]
        assert sorted(inputs["advantages"].tolist()) == pytest.approx([-0.70701] * 2 + [0.70701] * 2, abs=1e-5)


@pytest.mark.parametrize("name", mostly_slow("ral", "attn_distill"))
def test_a_batch_whose_media_are_all_bad_teaches_nothing(make_trainer, rows, name, tmp_path, monkeypatch):
    # A run of only such batches ends with an error; this test checks its steps.
    monkeypatch.setattr(RolloutBuilder, "require_rows_used", lambda builder, dataset, **when: None)
    bad = [{**row, "videos": [str(Path(tmp_path) / "missing.mp4")]} for row in rows["video"][:2]]
    # two micro-batches a rollout: the second is trained with other weights than those that sampled it
    settings = {"num_iterations": 1, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    with pytest.warns(UserWarning, match="Left out"):
        trainer, updates = run(make_trainer, bad, name, ("ordinary",), on_bad_media="skip", **settings)
    check(name, trainer, [("left out", *rest) for _, *rest in updates])
