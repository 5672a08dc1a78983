"""KTRTrainer: key tokens, losses and gradients against the paper's formulas, its options, and runs."""

import pytest
import torch

from tests.helpers import history, message
from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Eager,
    Update,
    asked_again,
    assert_group_weights,
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    completions_of,
    groups_of,
    inputs_of,
    ktr_keys,
    ktr_signals,
    orders_of,
    policy_terms,
    size_of,
    trained,
    weights_of,
)
from trl_perception import KTRTrainer

MIXED = {**OBJECTIVES["mixed"], **TWO_UPDATES}


RELEASE_VIEWS = {"shuffle": "frames", "masked_view_positions": "recompute"}


def keys_of(update, views=(), **options):
    """Whether each token of an update's completions is a key token."""
    keys = []
    for group in update.groups():
        if not group[0].row["videos"] and not group[0].row["images"]:
            keys += [[True] * len(completion.ids) for completion in group]
            continue
        eager = Eager(update.path, update.sampled_with)
        pairs = [(completion.row, completion.ids) for completion in group]
        seeds = {"seed": update.args.seed, "step": update.sampled_at}
        keys += ktr_keys(ktr_signals(eager, pairs, update.temperature, **seeds, **dict(views)), **options)
    return keys


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_weights_losses_and_gradients_are_the_papers(rows, make_trainer, kind):
    trainer = trained(build(make_trainer, rows[kind], KTRTrainer, **OBJECTIVES[kind], **TWO_UPDATES))
    assert (trainer.args.loss_type, trainer.args.epsilon, trainer.args.epsilon_high) == ("grpo", 0.2, None)
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        keys, sampled = keys_of(update), update.read(update.sampled_with)
        # ceil(0.2 * 8) = 2 of each signal: of 8 tokens at least 2 and at most 6 are kept
        assert all(2 <= sum(of_one) <= 6 for of_one in keys if len(of_one) == 8 and not all(of_one))
        update.assert_weights([[float(key) for key in of_one] for of_one in keys])
        pairs = zip(update.advantages(), keys, strict=True)
        now = update.read(update.weights, grad=True)
        terms = policy_terms(update, now, sampled, [[a * key for key in of_one] for a, of_one in pairs])
        assert size_of(terms) > 0.01
        update.assert_losses(terms)


@pytest.mark.parametrize("mask_kl", [False, True])
def test_the_mean_over_kept_tokens_and_its_kl(rows, make_trainer, mask_kl):
    """1/(kept) instead of 1/|o|; the KL term covers the completion as before, or the kept tokens alone."""
    # The tenth of a group that depends most on the media: of a group of 1 and 7 tokens one token, so that the other
    # completion keeps none.
    ratios = {"visual": 0.1, "temporal": 0.0, "entropy": 0.0}
    options = {"mask_kl": mask_kl, "beta": 0.3, "preset": "release"}
    options |= {f"{name}_keep_ratio": ratio for name, ratio in ratios.items()}
    trainer = build(make_trainer, rows["mixed"], KTRTrainer, **MIXED, **options)
    reference = weights_of(trainer.ref_model)
    trained(trainer)
    empty = 0
    for step in (0, 1):
        update = Update(trainer, rows["mixed"], step)
        keys = keys_of(update, RELEASE_VIEWS, preset="release", **ratios)
        empty += sum(not any(of_one) for of_one in keys)
        if mask_kl:
            update.assert_weights([[float(key) for key in of_one] for of_one in keys])
        else:
            update.assert_weights([[key * len(of_one) / max(1, sum(of_one)) for key in of_one] for of_one in keys])
        sampled, far = update.read(update.sampled_with), update.read(reference)
        now = update.read(update.weights, grad=True)
        pairs = list(zip(update.advantages(), keys, strict=True))
        if mask_kl:
            credit = [[a] * len(of_one) for a, of_one in pairs]
            terms = policy_terms(update, now, sampled, credit, reference=far, kept=keys)
        else:
            credit = [[a * key * len(of_one) / max(1, sum(of_one)) for key in of_one] for a, of_one in pairs]
            terms = policy_terms(update, now, sampled, credit, reference=far)
        assert size_of(terms) > 0.01
        update.assert_losses(terms)
    assert empty > 0


def test_kept_tokens_do_not_bring_a_sample_back_that_is_left_out(rows, make_trainer):
    """With mask_kl tokens leave the loss, KL term included: those outside the mask, and all of a sample that was left out."""

    class Batches(KTRTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            seen.append(inputs)
            return loss

    seen = []
    gone = {"prompt": message("Gone?", "video"), "videos": ["/nowhere.mp4"], "images": []}
    options = {"key_token_normalizer": "kept", "mask_kl": True, "loss_type": "grpo", "beta": 0.3}
    options |= {"on_bad_media": "skip", "per_device_train_batch_size": 8, "max_steps": 1}
    trainer = make_trainer([rows["video"][0], gone], cls=Batches, **options)
    with pytest.warns(UserWarning, match="Left out"):
        trainer.train()
    (batch,) = seen
    left_out = torch.tensor([bool(sample["left_out"]) for sample in batch["sample"]])
    assert left_out.sum() == 4
    assert not batch.loss_mask[left_out].any()
    kept = (batch["token_weights"] > 0) & batch["completion_mask"].bool()
    assert torch.equal(batch.loss_mask[~left_out], kept[~left_out])
    assert 0 < batch.loss_mask.sum() < batch["completion_mask"][~left_out].sum()


RATIOS = ("visual_keep_ratio", "temporal_keep_ratio", "entropy_keep_ratio")
OPTIONS = {
    "no visual signal": {"visual_keep_ratio": 0.0},
    "no temporal signal": {"temporal_keep_ratio": 0.0},
    "no entropy": {"entropy_keep_ratio": 0.0},
    "more visual tokens": {"visual_keep_ratio": 0.5},
    "more temporal tokens": {"temporal_keep_ratio": 0.5},
    "more uncertain tokens": {"entropy_keep_ratio": 0.5},
    "release": {"preset": "release"},
    "frames": {"shuffle": "frames"},
    "recomputed positions": {"masked_view_positions": "recompute", "visual_keep_ratio": 0.5},
    "zeroed": {"visual_view": "zeroed", "visual_keep_ratio": 0.5},
    "all visual": {"visual_keep_ratio": 1.0},
    "all temporal": {"temporal_keep_ratio": 1.0},
    "all uncertain": {"entropy_keep_ratio": 1.0},
}


def test_each_option_changes_the_key_tokens_as_the_paper_says(rows, make_trainer):
    trainer, groups = groups_of(make_trainer, rows["several"][:2], KTRTrainer)
    eager = Eager(trainer.model.config._name_or_path, weights_of(trainer.model))
    seeds = {"seed": trainer.args.seed, "step": trainer.state.global_step}
    plain = [trainer.token_weights(group).weights for group in groups]
    signals = {}
    for name, option in {"as set": {}, **OPTIONS}.items():
        ratios = {ratio.split("_")[0]: option.get(ratio, 0.2) for ratio in RATIOS}
        views = {key: option[key] for key in ("shuffle", "masked_view_positions", "visual_view") if key in option}
        changed = 0.0
        for number, (group, before) in enumerate(zip(groups, plain, strict=True)):
            key = (number, *views.values())
            if key not in signals:
                pairs = [(group.prompt.row, ids) for ids in completions_of(group)]
                signals[key] = ktr_signals(eager, pairs, 0.8, **seeds, **views)
            if "all temporal" in name:
                keys = [[True] * len(entropies) for _, _, entropies in signals[key]]  # also where no video is
            else:
                keys = ktr_keys(signals[key], preset=option.get("preset", "paper"), **ratios)
            credit = asked_again(trainer, group, option)
            assert_group_weights(credit, [[float(key) for key in of_one] for of_one in keys], name)
            changed += (credit.weights - before).abs().sum().item()
        assert (changed > 0) == bool(option), name
        if name.startswith("all"):
            assert all(credit.weights[group.completion_mask] == 1), name


def test_soft_weightings_keep_the_key_tokens_ahead(rows, make_trainer):
    trainer, (group,) = groups_of(make_trainer, rows["video"][:1], KTRTrainer)
    hard = trainer.token_weights(group).weights.bool()
    for weighting in ("softmax", "sigmoid", "linear", "exponential"):
        soft = asked_again(trainer, group, {"weighting": weighting}).weights
        for keys, weights, mask in zip(hard, soft, group.completion_mask, strict=True):
            assert not weights[~mask].any()
            assert ((weights >= 0) & (weights <= 1 + 1e-6)).all()
            key, other = weights[mask & keys], weights[mask & ~keys]
            assert torch.allclose(key, key[0])  # one weight for all key tokens
            if weighting == "softmax":
                assert weights.sum() == pytest.approx(len(key), abs=1e-5)  # the hard mask's total
            else:
                assert key[0] == pytest.approx(1, abs=1e-6)
            assert (other < key[0]).all()
            assert len(other) == 0 or other.max() > 0


def views_of(trainer, group, **option):
    """What the group is scored under: with media, media-masked, shuffled."""
    trainer.views.clear()
    asked_again(trainer, group, option)
    return trainer.views


def test_the_shuffled_view_is_the_seeds_permutation(rows, make_trainer):
    """One order a prompt and rollout, never the identity, another one at another step; positions and grid stay."""
    trainer, (group,) = groups_of(make_trainer, rows["several"][:1], KTRTrainer)
    row, visual = group.prompt.row, group.visual
    shown = []
    for step in (0, 0, 1, 2, 3):
        trainer.state.global_step = step
        prompt = (trainer.args.seed, step, group.prompt_ids.tolist())
        _, _, cells = views_of(trainer, group)
        _, _, frames = views_of(trainer, group, shuffle="frames")
        # 2 clips of 4 cells of 4 * 4 patches
        orders = orders_of(*prompt, [4, 4])
        assert all(order != [0, 1, 2, 3] for order in orders)
        clips = zip(visual.pixel_values_videos.view(2, 4, 16, -1), orders, strict=True)
        expected = torch.stack([clip[order] for clip, order in clips])
        assert torch.equal(cells.visual.pixel_values_videos.view_as(expected), expected)
        # 2 clips of 8 frames, permuted before the processor
        expected = inputs_of(trainer.processing_class, row, orders_of(*prompt, [8, 8]))["pixel_values_videos"]
        assert torch.equal(frames.visual.pixel_values_videos, expected)
        for view in (cells, frames):
            assert torch.equal(view.visual.video_grid_thw, visual.video_grid_thw)
            assert torch.equal(view.visual.pixel_values, visual.pixel_values)
            assert torch.equal(view.prompt_ids, group.prompt_ids)
            assert view.positions is None
        shown.append((cells.visual.pixel_values_videos, frames.visual.pixel_values_videos))
    for which in (0, 1):
        assert torch.equal(shown[0][which], shown[1][which])
        assert any(not torch.equal(shown[0][which], later[which]) for later in shown[2:])


def test_the_media_masked_view_keeps_its_positions_or_renumbers_them(rows, make_trainer):
    trainer, (group,) = groups_of(make_trainer, rows["video"][:1], KTRTrainer)
    inputs = inputs_of(trainer.processing_class, group.prompt.row)
    positions, _ = trainer.model.model.get_rope_index(
        **{name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    )
    text = inputs["mm_token_type_ids"][0] == 0
    _, kept, _ = views_of(trainer, group)
    _, recomputed, _ = views_of(trainer, group, masked_view_positions="recompute")
    for view in (kept, recomputed):
        assert torch.equal(view.prompt_ids, inputs["input_ids"][0, text])
        assert view.visual.visual_tokens == 0
    assert recomputed.positions is None
    prompt, after = kept.positions.split([int(text.sum()), group.completion_ids.size(1)], dim=1)
    assert torch.equal(prompt, positions[:, 0, text])
    # the completion continues where the prompt ends, on every axis
    assert torch.equal(after, (positions.max() + 1 + torch.arange(after.size(1))).expand(3, -1))


def test_any_ratio_of_1_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], KTRTrainer, {"visual_keep_ratio": 1.0}, {})


def test_text_prompts_keep_every_weight_at_one(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["text"], KTRTrainer, num_generations=2, max_steps=1))
    assert trainer.seen[0].inputs.get("token_weights") is None
    assert trainer.views == []
    assert history(trainer, "ktr/kept_frac") == [[]]


def test_signals_come_once_a_rollout_from_complete_groups(rows, make_trainer):
    settings = {**OBJECTIVES["video"], **TWO_UPDATES, "max_steps": 4}
    trainer = trained(build(make_trainer, rows["video"], KTRTrainer, **settings))
    # 4 updates of 2 iterations are 2 rollouts of a group each, scored with media, media-masked and shuffled
    assert len(trainer.seen) == 8
    assert [len(group.completion_ids) for group in trainer.groups] == [4, 4]
    kinds = [
        "with media" if v is None else "shuffled" if v.visual.visual_tokens else "media-masked" for v in trainer.views
    ]
    assert kinds == ["with media", "media-masked", "shuffled"] * 2
    first, _, again, _ = trainer.seen[:4]
    assert torch.equal(first.inputs["token_weights"], again.inputs["token_weights"])


def test_signals_that_are_off_or_absent_cost_no_forward(rows, make_trainer):
    trainer, groups = groups_of(make_trainer, rows["mixed"], KTRTrainer)
    counts = {}
    for group in groups:
        kind = "video" if group.prompt.row["videos"] else "image" if group.prompt.row["images"] else "text"
        for option in ({}, {"visual_keep_ratio": 0.0}, {"temporal_keep_ratio": 0.0}):
            trainer.views.clear()
            asked_again(trainer, group, option)
            counts[kind, *option] = len(trainer.views)
    assert counts == {
        ("video",): 3, ("video", "visual_keep_ratio"): 2, ("video", "temporal_keep_ratio"): 2,
        ("image",): 2, ("image", "visual_keep_ratio"): 1, ("image", "temporal_keep_ratio"): 2,
        ("text",): 0, ("text", "visual_keep_ratio"): 0, ("text", "temporal_keep_ratio"): 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        *(({ratio: value}, ratio) for ratio in RATIOS for value in (-0.1, 1.1)),
        (dict.fromkeys(RATIOS, 0.0), "All three keep ratios are 0"),
        ({"preset": "draft"}, "preset"),
        ({"weighting": "soft"}, "weighting"),
        ({"shuffle": "cells"}, "shuffle"),
        ({"masked_view_positions": "new"}, "masked_view_positions"),
        ({"visual_view": "blank"}, "visual_view"),
        ({"visual_view": "zeroed", "preset": "release"}, "visual_view='zeroed'.*masked_view_positions='original'"),
        ({"key_token_normalizer": "tokens"}, "key_token_normalizer"),
        ({"mask_kl": True}, "mask_kl.*key_token_normalizer='kept'"),
        ({"key_token_normalizer": "kept", "loss_type": "dapo"}, "key_token_normalizer.*loss_type"),
        ({"key_token_normalizer": "kept", "weighting": "linear"}, "key_token_normalizer.*weighting"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad, words):
    assert_refused(tmp_path, KTRTrainer, bad, words)


def test_the_preset_sets_what_is_not_set(tmp_path):
    def fields(**options):
        config = KTRTrainer.config_class(str(tmp_path), use_cpu=True, bf16=False, **options)
        return {name: getattr(config, name) for name in paper}

    paper = {
        "shuffle": "grid", "masked_view_positions": "original", "key_token_normalizer": "length", "mask_kl": False,
        "visual_view": "masked", "loss_type": "grpo",
    }  # fmt: skip
    release = {**paper, **RELEASE_VIEWS, "key_token_normalizer": "kept", "mask_kl": True}
    assert fields() == fields(preset="paper") == paper
    assert fields(preset="release") == release
    own = {"mask_kl": False, "shuffle": "grid"}
    assert fields(preset="release", **own) == {**release, **own}


@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run):
    assert_runs(make_trainer, rows, KTRTrainer, run, "ktr/kept_frac")
