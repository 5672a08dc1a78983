"""LoRA and its kin on language and vision layers: the same numbers on every path, and nothing else that moves."""

import pytest
import torch
from peft import LoraConfig

from tests.trainers.reference import build, trained
from trl_perception.trainers import TRAINERS, GRPOVideoTrainer

FAST = {"group_forward": "on", "shared_prefill": True, "reuse_vision_features": True}
PLAIN = {"group_forward": "off", "shared_prefill": False, "reuse_vision_features": False}

OPTIONS = {
    "grpo": {},
    "appo": {"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"},
    "pgpo": {"dependency_threshold": 0.2},
    "ktr": {},
    "ral": {"num_iterations": 2},
    "attn_distill": {"gkd_weight": 0.5},  # without a teacher: the base of the adapter teaches
}
LAYERS = {
    "language": r".*language_model.*(q_proj|v_proj|down_proj)",
    "tower": r".*visual\.blocks.*(qkv|down_proj)",
    "merger": r".*visual\.merger\.mlp\.[02]",
    "vision": r".*visual\.(blocks.*(qkv|proj)|merger\.mlp\.[02])",
    "all": "all-linear",
}
KINDS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
FIRST = [  # in every run of the tests; the others are slow
    ("grpo", "all", "dora"),
    ("appo", "vision", "lora"),
    ("pgpo", "all", "rslora"),
    ("ktr", "merger", "dora"),
    ("ral", "language", "lora"),
    ("attn_distill", "vision", "rslora"),
]
EVERY = [(name, layers, kind) for name in TRAINERS for layers in LAYERS for kind in KINDS]
# Merger and language model under an adapter leave the tower as it was: its features are computed once.
TOWER_STAYS = ("language", "merger")


def lora(layers="language", kind="lora", **settings):
    return LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS[layers], **KINDS[kind], **settings)


def run(make_trainer, rows, name, config, **settings):
    defaults = {
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "beta": 0.1,
    }
    cls = TRAINERS.get(name, name)
    return build(
        make_trainer, rows, cls, **{**defaults, **OPTIONS.get(name, {}), **settings}, extra={"peft_config": config}
    )


def adapters(trainer):
    return {name for name, parameter in trainer.model.named_parameters() if "lora_" in name}


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def changed(trainer, before):
    return {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("name", "layers", "kind"),
    [*FIRST, *(pytest.param(*of, marks=pytest.mark.slow) for of in EVERY if of not in FIRST)],
)
def test_fast_paths_give_an_adapter_the_same_gradients(rows, make_trainer, name, layers, kind):
    trainers = []
    for paths in (FAST, PLAIN):
        trainer = run(make_trainer, rows["mixed"], name, lora(layers, kind), **paths)
        before, kept = weights(trainer), keep_credit(trainer)
        trainers.append(trained(trainer))
        assert changed(trainer, before) == adapters(trainer)  # each of them, and nothing else
    fast, plain = trainers
    assert fast._forwards.packs
    assert fast._reuses_features == (layers in TOWER_STAYS)
    assert len(fast.seen) == len(plain.seen) > 1
    for ours, theirs in zip(fast.seen, plain.seen, strict=True):
        assert torch.equal(ours.inputs["completion_ids"], theirs.inputs["completion_ids"])
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4, abs=1e-5)
        assert ours.gradients.keys() == theirs.gradients.keys() == adapters(fast)
        flat = [torch.cat([seen.gradients[key].flatten() for key in theirs.gradients]) for seen in (ours, theirs)]
        assert (flat[0] - flat[1]).norm() < 1e-4 * flat[1].norm() + 1e-7
        assert flat[1].norm() > 1e-4
    assert_credit(plain, kept)


def keep_credit(trainer):
    """The weights that the trainer's method gives, from now on."""
    kept, body = [], trainer.token_weights

    def token_weights(group):
        credit = body(group)
        kept.append((credit, group))
        return credit

    trainer.token_weights = token_weights
    return kept


def assert_credit(trainer, kept):
    """Weights differ between tokens at the last update, when the adapter is no longer nothing; penalties act."""
    assert len(kept) >= 3  # one prompt with its completions, or two, in each of three steps
    credit, group = kept[-1]
    if credit is not None:
        given = credit.weights[group.completion_mask.bool()]
        assert given.isfinite().all()
        assert given.std() > 1e-3
    elif trainer.penalties[-1] is not None:
        assert torch.tensor(trainer.penalties).isfinite().all()
        assert max(map(abs, trainer.penalties)) > 1e-7
    else:
        assert isinstance(trainer, GRPOVideoTrainer)
        assert type(trainer).__mro__[2] is GRPOVideoTrainer
