"""Work that completions share is done once, with the same results: each trainer on the fast paths against the plain ones."""

import logging
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from tests.helpers import COMPARED, every_method
from tests.trainers.reference import build, outcome, trained
from trl_perception.modeling import View
from trl_perception.trainers import (
    TRAINERS,
    APPOTrainer,
    GRPOVideoTrainer,
    KTRTrainer,
    PAPOTrainer,
    PGPOTrainer,
    RALTrainer,
    TWGRPOTrainer,
    VPPOTrainer,
)
from trl_perception.trainers.policy_reader import CachedForward

FAST = {"group_forward": "on", "shared_prefill": True, "reuse_vision_features": True}
PLAIN = {"group_forward": "off", "shared_prefill": False, "reuse_vision_features": False}

OPTIONS = every_method(
    appo={"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"},
    ral={"num_iterations": 2},
    attn_distill={"teacher_model_name_or_path": "tiny_teacher", "gkd_weight": 0.5, "grpo_weight": 1.0},
)
# Completions are cut to unequal lengths (see `Recorder`); "mixed" prompts have videos, images, both and neither.
SCENARIOS = {
    "aligned": ("mixed", {"num_generations": 4, "per_device_train_batch_size": 8}),
    "groups in parts, two iterations, KL": (
        "mixed",
        {
            "num_generations": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_iterations": 2,
            "beta": 0.1,
        },
    ),
    "checkpointed": ("video", {"num_generations": 4, "gradient_checkpointing": True}),
    "adapter": ("several", {"num_generations": 4}),
    "frozen tower": ("several", {"num_generations": 4, "freeze_vision_tower": True, "num_iterations": 2}),
    "stale slices": (
        "mixed",
        {"num_generations": 4, "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 1},
    ),
}


def run(make_trainer, rows, name, scenario, paths):
    kind, settings = SCENARIOS[scenario]
    extra = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} if scenario == "adapter" else {}
    defaults = {"max_steps": 3, "learning_rate": 1e-3, "optim": "sgd", "lr_scheduler_type": "constant"}
    config = {**defaults, **OPTIONS[name], **settings, **paths}
    return trained(build(make_trainer, rows[kind], TRAINERS[name], **config, extra=extra))


FIRST = {
    "grpo": ("aligned", "adapter"),
    "appo": ("groups in parts, two iterations, KL",),
    "pgpo": ("checkpointed",),
    "ktr": ("frozen tower", "stale slices"),
    "ral": ("groups in parts, two iterations, KL",),
    "attn_distill": ("aligned",),
    "papo": ("frozen tower",),
    "t_grpo": ("frozen tower",),
    "tw_grpo": (),
    "vppo": (),
}


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        pytest.param(name, scenario, marks=() if scenario in FIRST[name] else pytest.mark.slow)
        for name in TRAINERS
        for scenario in SCENARIOS
    ],
)
def test_losses_and_gradients_agree(rows, make_trainer, name, scenario):
    fast, plain = (run(make_trainer, rows, name, scenario, paths) for paths in (FAST, PLAIN))
    assert fast._forwards.packs
    assert not plain._forwards.packs
    assert len(fast.seen) == len(plain.seen) > 0
    lengths = set()
    for ours, theirs in zip(fast.seen, plain.seen, strict=True):
        assert torch.equal(ours.inputs["completion_ids"], theirs.inputs["completion_ids"])
        lengths |= set(ours.inputs["completion_mask"].sum(1).tolist())
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4, abs=1e-5)
        assert ours.gradients.keys() == theirs.gradients.keys()
        flat = [torch.cat([seen.gradients[key].flatten() for key in theirs.gradients]) for seen in (ours, theirs)]
        assert (flat[0] - flat[1]).norm() < 1e-4 * flat[1].norm() + 1e-7
    assert len(lengths) > 1
    for metric in ("entropy", "loss", "reward"):
        logged = [[entry[metric] for entry in t.state.log_history if metric in entry] for t in (fast, plain)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=1e-5)
        assert logged[0]


def test_a_reference_with_another_tower_sees_with_its_own(rows, make_trainer):
    """A model with other weights than its path's, which the reference model has."""
    config = {"num_generations": 4, "freeze_vision_tower": True, "beta": 0.1, "max_steps": 1}
    fast, plain = (
        trained(build(make_trainer, rows["image"], GRPOVideoTrainer, reuse_vision_features=reuses, **config))
        for reuses in (True, False)
    )
    of_reference = [trainer.seen[0].inputs["ref_per_token_logps"] for trainer in (fast, plain)]
    torch.testing.assert_close(*of_reference, rtol=1e-4, atol=1e-4)
    assert not fast._reuses_features
    assert make_trainer(rows["image"], **config)._reuses_features  # of one path, with one tower


READS = {
    "appo": (APPOTrainer, {"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"}, 0),
    "pgpo": (PGPOTrainer, {}, 1),
    "pgpo over the vocabulary": (PGPOTrainer, {"dependency": "kl"}, 1),
    "ktr": (KTRTrainer, {}, 2),
    "vppo": (VPPOTrainer, {}, 1),
    "tw_grpo": (TWGRPOTrainer, {}, 0),
}


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        pytest.param(name, packing, marks=pytest.mark.slow if name in COMPARED and packing == "off" else ())
        for name in READS
        for packing in ("on", "off")
    ],
)
def test_an_update_that_follows_its_rollout_serves_the_credit(rows, make_trainer, monkeypatch, name, packing):
    cls, options, others = READS[name]
    config = {
        **options,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "group_forward": packing,
    }
    served = trained(build(make_trainer, rows["mixed"], cls, **config))
    apart = build(make_trainer, rows["mixed"], cls, **config)
    apart.policy_reads = None
    forwards = count_forwards(monkeypatch, apart)
    trained(apart)
    (ours,), (theirs,) = served.seen, apart.seen
    assert "token_weights" not in ours.inputs  # not before the forward
    assert "token_weights" in theirs.inputs
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-7)
    for key, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[key], gradient, rtol=1e-4, atol=5e-6)
    for key in [key for key in apart.state.log_history[0] if "/" in key]:
        assert served.state.log_history[0][key] == pytest.approx(apart.state.log_history[0][key], rel=1e-4, abs=1e-6)
    assert forwards  # the pass is saved: counted below
    again = build(make_trainer, rows["mixed"], cls, **config)
    saved = count_forwards(monkeypatch, again)
    trained(again)
    groups_with_media = len(saved) - 1 if packing == "on" and others == 0 else None
    assert len(saved) < len(forwards)
    if groups_with_media is not None:
        assert groups_with_media == 0  # the update's own forward alone


def count_forwards(monkeypatch, trainer):
    """The row counts of every scoring forward from now on."""
    counts, body = [], trainer._forwards.bind

    def counted(model, input_ids, *args):
        counts.append(len(input_ids))
        return body(model, input_ids, *args)

    monkeypatch.setattr(trainer._forwards, "bind", counted)
    return counts


def test_the_old_policys_pass_serves_the_credit_of_stale_updates(rows, make_trainer, monkeypatch):
    config = {"num_generations": 4, "per_device_train_batch_size": 4, "num_iterations": 2, "max_steps": 1}
    config["gradient_accumulation_steps"] = 1
    apart = build(make_trainer, rows["video"], PGPOTrainer, **config)
    monkeypatch.setattr(apart, "_old_policy_forward", lambda *args: CachedForward())
    counts = [count_forwards(monkeypatch, apart)]
    trained(apart)
    served = build(make_trainer, rows["video"], PGPOTrainer, **config)
    counts.append(count_forwards(monkeypatch, served))
    trained(served)
    # the old policy, with media, media-masked, the update; then without the pass with media
    assert (len(counts[0]), len(counts[1])) == (4, 3)
    assert served.seen[0].loss == pytest.approx(apart.seen[0].loss, rel=1e-5)
    torch.testing.assert_close(served.seen[0].inputs["token_weights"], apart.seen[0].inputs["token_weights"])


def test_a_penalty_is_not_disturbed_by_credit_beside_it(rows, make_trainer):
    """A subclass with both: the taps of the penalty see only the update, not the forwards for credit."""

    class Both(RALTrainer):
        def token_weights(self, group):
            self.score(group)
            return None

    config = {"num_generations": 2, "num_iterations": 2, "max_steps": 2, "group_forward": "on"}
    both, one = (trained(build(make_trainer, rows["mixed"], cls, **config)) for cls in (Both, RALTrainer))
    assert [seen.loss for seen in both.seen] == pytest.approx([seen.loss for seen in one.seen], rel=1e-5)


def test_the_tower_sees_each_medium_once_a_rollout(rows, make_trainer):
    calls = []
    for paths in (FAST, {**FAST, "reuse_vision_features": False}):
        config = {"num_generations": 4, "per_device_train_batch_size": 4, "num_iterations": 2, "max_steps": 2}
        trainer = build(make_trainer, rows["video"], KTRTrainer, **config, **paths, freeze_vision_tower=True)
        seen = []
        trainer.model.model.visual.register_forward_hook(lambda *args, seen=seen: seen.append(1))
        trained(trainer)
        calls.append(len(seen))
    # one rollout of one prompt; without reuse: prefill, old policy, shuffled, and two updates
    assert calls == [1, 5]


@pytest.mark.parametrize("cls", [PAPOTrainer, pytest.param(VPPOTrainer, marks=pytest.mark.slow)])
def test_the_tower_sees_masked_media_once_more_a_rollout(rows, make_trainer, cls):
    """Never from the features of the media as they are: with the patches masked by p = 1 every picture is black."""
    config = {"num_generations": 4, "per_device_train_batch_size": 4, "num_iterations": 2, "max_steps": 2}
    trainer = build(make_trainer, rows["video"], cls, **config, **FAST, freeze_vision_tower=True, mask_probability=1.0)
    seen, body = [], trainer.model.model.visual.forward
    trainer.model.model.visual.forward = lambda pixels, *args, **kwargs: (
        seen.append(pixels) or body(pixels, *args, **kwargs)
    )
    trained(trainer)
    assert [bool((pixels == pixels[:1]).all()) for pixels in seen] == [False, True]


def test_another_models_tower_sees_the_pixels(rows, make_trainer):
    config = {**OPTIONS["attn_distill"], **FAST, "num_generations": 4, "freeze_vision_tower": True, "max_steps": 1}
    trainer = build(make_trainer, rows["video"], TRAINERS["attn_distill"], **config)
    seen = []
    trainer.teacher.model.visual.register_forward_hook(lambda *args: seen.append(1))
    trained(trainer)
    assert seen == [1]
    policy = build(make_trainer, rows["video"], GRPOVideoTrainer, **FAST, freeze_vision_tower=True, max_steps=1)
    trained(policy)
    with pytest.raises(ValueError, match="keeps_pixels = True"):
        policy.score(policy.groups[0], model=trainer.teacher)


class Reversed(GRPOVideoTrainer):
    """Scores a view whose pixels are those of the prompt in reverse order, as a custom signal would."""

    def token_weights(self, group):
        visual = group.visual
        pixels = {name: getattr(visual, name) for name in ("pixel_values", "pixel_values_videos")}
        other = {name: values.flip(0) for name, values in pixels.items() if values is not None}
        self.shown = group, other, self.score(group, View(group.prompt_ids, replace(visual, **other)))[0]
        self.as_it_is = self.score(group)[0]


def test_a_view_of_other_pixels_is_what_the_tower_makes_of_them(rows, make_trainer):
    """Under a frozen tower whose features are reused: the log-probs are those of the plain path on the new pixels."""
    config = {
        "num_generations": 4,
        "max_steps": 1,
        "freeze_vision_tower": True,
        "freeze_merger": True,
        "learning_rate": 0.0,
    }
    with pytest.raises(ValueError, match=r"a view or another model reads this prompt's pixels.*keeps_pixels = True"):
        trained(build(make_trainer, rows["video"], Reversed, **config))
    trainer = trained(build(make_trainer, rows["video"], type("Keeps", (Reversed,), {"keeps_pixels": True}), **config))
    assert trainer._reuses_features
    group, other, logps = trainer.shown
    plain = build(make_trainer, rows["video"], GRPOVideoTrainer, **config, **PLAIN)
    shown = View(group.prompt_ids, replace(group.visual, **other, video_features=None))
    counted = group.completion_mask
    assert (logps - plain.score(group, shown)[0])[counted].abs().max() < 1e-4
    assert (logps - trainer.as_it_is)[counted].abs().max() > 1e-2


def test_a_trained_tower_is_run_every_time(rows, make_trainer):
    trainer = build(make_trainer, rows["video"], GRPOVideoTrainer, **FAST)
    assert not trainer._reuses_features
    frozen = build(make_trainer, rows["video"], GRPOVideoTrainer, **FAST, freeze_vision_tower=True)
    assert frozen._reuses_features


def test_auto_packs_where_it_pays(rows, make_trainer):
    config = {"num_generations": 4, "per_device_train_batch_size": 4, "max_steps": 1}
    video = trained(build(make_trainer, rows["video"], GRPOVideoTrainer, **config))
    assert video.args.group_forward == "auto"
    assert video._forwards.packs
    # with one completion a prompt in a forward there is nothing to share
    alone = {**config, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert not trained(build(make_trainer, rows["video"], GRPOVideoTrainer, **alone))._forwards.packs


def test_what_cannot_be_packed_is_reported_once_or_refused(rows, make_trainer, caplog):
    eager = {"model_init_kwargs": {"attn_implementation": "eager", "dtype": "float32"}}
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(rows["video"], **eager)
    assert trainer._forwards.mode == "off"
    lines = [record for record in caplog.records if "own copy of the prompt" in record.getMessage()]
    assert len(lines) == 1
    assert "'eager'" in lines[0].getMessage()
    with pytest.raises(ValueError, match=r"group_forward='on' is not possible: attn_implementation is 'eager'"):
        make_trainer(rows["video"], group_forward="on", **eager)
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    assert make_trainer(rows["video"], **compiled)._forwards.mode == "off"
    with pytest.raises(ValueError, match=r"not possible: torch_compile cannot trace"):
        make_trainer(rows["video"], group_forward="on", **compiled)
    with pytest.raises(ValueError, match="'auto', 'on' or 'off'"):
        make_trainer(rows["video"], group_forward="yes")


def test_a_prefill_that_cannot_be_shared_is_reported(rows, make_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(rows["video"], generation_kwargs={"use_cache": False})
    assert not trainer._prefills
    lines = [record.getMessage() for record in caplog.records if "prefills its own copy" in record.getMessage()]
    assert len(lines) == 1
    assert "another cache" in lines[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        make_trainer(rows["video"], generation_kwargs={"use_cache": False}, shared_prefill=False)  # as requested
    assert "prefills" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "appo", "ral"])
def test_a_compiled_model_takes_the_same_steps(rows, make_trainer, method):
    """Traced by `torch.compile`, taps included; the backend that generates code is left out, which takes minutes."""
    config = {
        "max_steps": 2,
        "num_generations": 2,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        **OPTIONS[method],
        **PLAIN,
    }
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    plain, traced = (
        outcome(make_trainer, rows["video"], TRAINERS[method], **config, **more) for more in ({}, compiled)
    )
    for mine, theirs in zip(traced, plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    torch.compiler.reset()
