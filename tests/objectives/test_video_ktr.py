"""Video-KTR: key tokens and their weights against hand counts and a plain loop."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import ktr_token_weights
from trl_perception.objectives.video_ktr import WEIGHTINGS, key_token_mask

NAN = math.nan

VISUAL = torch.tensor([[0.1, -0.9, 0.5, 0.2], [0.7, NAN, NAN, NAN]])
TEMPORAL = torch.tensor([[0.0, 0.1, -0.2, 0.3], [-0.4, NAN, NAN, NAN]])
ENTROPIES = torch.tensor([[2.0, 1.0, 0.5, 0.1], [0.0, NAN, NAN, NAN]])
MASK = torch.tensor([[True] * 4, [True, False, False, False]])
QUARTER = {"visual_keep_ratio": 0.25, "temporal_keep_ratio": 0.25, "entropy_keep_ratio": 0.25}


def test_key_token_mask_matches_hand_count():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 99.0, 99.0]])  # 99.0 sits on padding
    valid = torch.tensor([[True, True, True], [True, False, False]])
    # 3 valid tokens, ceil(0.5 * 3) = 2: .9 and .5 stay; 1 valid token, ceil(0.5) = 1: .7 stays
    expected = torch.tensor([[False, True, True], [True, False, False]])
    assert torch.equal(key_token_mask(scores, valid, keep_ratio=0.5), expected)


def test_key_token_mask_ties_go_to_the_earlier_and_counts_are_exact():
    ones = torch.ones(1, 100)
    valid = torch.ones(1, 100, dtype=torch.bool)
    # 0.07 * 100 = 7.000000000000001 in floating point; seven tokens, the first seven of a tie
    kept = key_token_mask(ones, valid, keep_ratio=0.07)
    assert kept.nonzero()[:, 1].tolist() == list(range(7))
    # at least one as soon as the ratio is above 0
    for ratio in (0.001, 1e-30):
        assert key_token_mask(ones, valid, keep_ratio=ratio).sum().item() == 1
    assert key_token_mask(ones, valid, keep_ratio=0.0).sum().item() == 0


def test_paper_by_hand():
    found = ktr_token_weights(VISUAL, TEMPORAL, ENTROPIES, MASK, **QUARTER)
    # ceil(.25 * 4) = 1 a signal: |dv| token 1 (.9), |dt| token 3 (.3), H token 0 (2.0); row 1 has one token
    assert found.weights.tolist() == [[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    metrics = {name: float(value) for name, value in found.metrics.items()}
    # of 5 valid tokens: 4 kept, 2 by each signal, 1 by more than one
    assert metrics["ktr/kept_frac"] == pytest.approx(0.8)
    assert metrics["ktr/weight_mean"] == pytest.approx(0.8)
    for signal in ("visual", "temporal", "entropy"):
        assert metrics[f"ktr/{signal}_frac"] == pytest.approx(0.4)
    assert metrics["ktr/overlap_frac"] == pytest.approx(0.2)
    assert metrics["ktr/empty_frac"] == 0.0


def test_release_by_hand():
    found = ktr_token_weights(VISUAL, TEMPORAL, ENTROPIES, MASK, preset="release", **QUARTER)
    # five tokens pooled, the .75 quantile is entry 3 of the sorted five:
    # dv -.9 .1 .2 .5 .7 -> .5: row 0 token 2, row 1 token 0   (the -.9 is a rise in confidence and does not count)
    # dt -.4 -.2 0 .1 .3 -> .1: row 0 tokens 1 and 3
    # H  0 .1 .5 1 2     -> 1:  row 0 tokens 0 and 1
    assert found.weights.tolist() == [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    only = {"temporal_keep_ratio": 0.0, "entropy_keep_ratio": 0.0}
    visual = ktr_token_weights(VISUAL, None, ENTROPIES, MASK, preset="release", visual_keep_ratio=0.25, **only)
    assert visual.weights.tolist() == [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def test_release_keeps_ties_and_may_keep_nothing_of_a_completion():
    scores = torch.tensor([[3.0, 3.0, 3.0], [1.0, 0.0, 2.0]])
    only = {"visual_keep_ratio": 0.2, "temporal_keep_ratio": 0.0, "entropy_keep_ratio": 0.0}
    found = ktr_token_weights(scores, None, torch.zeros(2, 3), torch.ones(2, 3), preset="release", **only)
    # sorted 0 1 2 3 3 3, position .8 * 5 = 4 -> 3: all three ties stay
    assert found.weights.tolist() == [[1.0] * 3, [0.0] * 3]
    assert float(found.metrics["ktr/empty_frac"]) == 0.5


def test_presets_differ_in_the_sign():
    only = {"visual_keep_ratio": 0.5, "temporal_keep_ratio": 0.0, "entropy_keep_ratio": 0.0}
    arguments = torch.tensor([[-5.0, 1.0]]), None, torch.zeros(1, 2), torch.ones(1, 2)
    assert ktr_token_weights(*arguments, **only).weights.tolist() == [[1.0, 0.0]]
    assert ktr_token_weights(*arguments, preset="release", **only).weights.tolist() == [[0.0, 1.0]]


def test_high_entropy_counts_not_low():
    only = {"entropy_keep_ratio": 0.5}
    found = ktr_token_weights(None, None, torch.tensor([[0.1, 2.0]]), torch.ones(1, 2), **only)
    assert found.weights.tolist() == [[0.0, 1.0]]


def test_soft_weightings_by_hand():
    # scores 4, 3, 2, 0; one key token: cut 4, range 4, gaps 0, .25, .5, 1; e = exp(-g / .1)
    only = {"visual_keep_ratio": 0.25, "temporal_keep_ratio": 0.0, "entropy_keep_ratio": 0.0}
    arguments = torch.tensor([[4.0, -3.0, 2.0, 0.0]]), None, torch.zeros(1, 4), torch.ones(1, 4)
    e = [1.0, math.exp(-2.5), math.exp(-5), math.exp(-10)]  # 1, .082085, .006738, .000045
    expected = {
        "hard": [1.0, 0.0, 0.0, 0.0],
        "linear": [1.0, 0.75, 0.5, 0.0],
        "exponential": e,
        "sigmoid": [2 / (1 + math.exp(x)) for x in (0.0, 2.5, 5.0, 10.0)],  # 1, .151718, .013386, .000091
        "softmax": [x / sum(e) for x in e],  # one key token's weight spread out: .918410, .075387, .006188, .000042
    }
    assert expected["softmax"][0] == pytest.approx(0.918410, abs=1e-4)
    for weighting, weights in expected.items():
        found = ktr_token_weights(*arguments, weighting=weighting, **only).weights
        torch.testing.assert_close(found, torch.tensor([weights]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_signal_off_keeps_nothing(preset, weighting):
    off = {"visual_keep_ratio": 0.0, "temporal_keep_ratio": 0.0, "entropy_keep_ratio": 0.0}
    found = ktr_token_weights(VISUAL, TEMPORAL, ENTROPIES, MASK, preset=preset, weighting=weighting, **off)
    assert (found.weights == 0).all()
    assert float(found.metrics["ktr/empty_frac"]) == 1.0
    off["visual_keep_ratio"] = 0.2  # asked for, but there is no visual signal
    found = ktr_token_weights(None, None, ENTROPIES, MASK, preset=preset, weighting=weighting, **off)
    assert (found.weights == 0).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_none_is_the_same_as_ratio_zero(weighting):
    without = ktr_token_weights(VISUAL, None, ENTROPIES, MASK, weighting=weighting)
    off = ktr_token_weights(VISUAL, TEMPORAL, ENTROPIES, MASK, weighting=weighting, temporal_keep_ratio=0.0)
    assert torch.equal(without.weights, off.weights)
    assert without.metrics.keys() == off.metrics.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "paper2"}, "preset is 'paper2'; wanted one of 'paper', 'release'"),
        ({"weighting": "soft"}, "weighting is 'soft'"),
        ({"visual_keep_ratio": 1.2}, "visual_keep_ratio is 1.2"),
        ({"temporal_keep_ratio": -0.1}, "temporal_keep_ratio is -0.1"),
        ({"entropy_keep_ratio": NAN}, "entropy_keep_ratio is nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ktr_token_weights(VISUAL, TEMPORAL, ENTROPIES, MASK, **change)


def test_wrong_tensors_are_refused():
    with pytest.raises(ValueError, match=r"visual_delta has shape \(2, 3\)"):
        ktr_token_weights(VISUAL[:, :3], TEMPORAL, ENTROPIES, MASK)
    with pytest.raises(ValueError, match=r"completion_mask has shape \(1, 4\)"):
        ktr_token_weights(VISUAL, TEMPORAL, ENTROPIES, MASK[:1])
    with pytest.raises(ValueError, match=r"temporal_delta\[1, 1\] is nan"):
        ktr_token_weights(None, TEMPORAL, torch.zeros(2, 4), torch.ones(2, 4))


# ---- against a plain loop ----


def loop_weights(visual, temporal, entropies, mask, ratios, preset, weighting):
    rows = range(len(mask))
    valid = [(b, t) for b in rows for t in range(len(mask[b])) if mask[b][t]]
    pools = [valid] if preset == "release" else [[(b, t) for b, t in valid if b == row] for row in rows]
    kept, gaps = set(), dict.fromkeys(valid, math.inf)
    for index, (signal, ratio) in enumerate(zip((visual, temporal, entropies), ratios, strict=True)):
        if ratio == 1:
            kept.update(valid)
            gaps = dict.fromkeys(valid, 0.0)
        if ratio in (0, 1) or signal is None:
            continue
        for pool in pools:
            if not pool:
                continue
            score = {(b, t): signal[b][t] for b, t in pool}
            if preset == "paper":
                score = {token: abs(s) if index < 2 else s for token, s in score.items()}
                keys = sorted(pool, key=lambda token: -score[token])[: math.ceil(ratio * len(pool))]
            else:
                ordered = sorted(score.values())
                position = (1 - ratio) * (len(ordered) - 1)
                low, share = math.floor(position), position - math.floor(position)
                threshold = ordered[low] + share * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
                keys = [token for token in pool if score[token] >= threshold]
            kept.update(keys)
            cut, span = min(score[token] for token in keys), max(score.values()) - min(score.values())
            for token in pool:
                gap = max(0.0, cut - score[token]) / span if span > 0 else 0.0
                gaps[token] = min(gaps[token], gap)
    weights = [[0.0] * len(row) for row in mask]
    for b, t in valid:
        gap = gaps[b, t]
        if weighting == "hard":
            weights[b][t] = float((b, t) in kept)
        elif weighting == "linear":
            weights[b][t] = max(0.0, 1 - gap)
        elif weighting == "sigmoid":
            weights[b][t] = 2 / (1 + math.exp(gap / 0.1)) if gap < math.inf else 0.0
        else:
            weights[b][t] = math.exp(-gap / 0.1)
            if weighting == "softmax":
                own = [token for token in valid if token[0] == b]
                total = sum(math.exp(-gaps[token] / 0.1) for token in own)
                weights[b][t] *= sum(token in kept for token in own) / total if total > 0 else 0.0
    return weights


def random_batch(seed, dtype=torch.float64, batch=4, length=11):
    generator = torch.Generator().manual_seed(seed)
    visual, temporal, entropies = torch.randn(3, batch, length, generator=generator, dtype=torch.float64).unbind()
    mask = torch.rand(batch, length, generator=generator) < 0.7
    hide = [x.masked_fill(~mask, NAN).to(dtype) for x in (visual, temporal, 2 * entropies.abs())]
    return *hide, mask


@pytest.mark.parametrize(("preset", "weighting"), list(itertools.product(["paper", "release"], WEIGHTINGS)))
def test_weights_match_the_loop(preset, weighting):
    cases = [(0.2, 0.2, 0.2), (0.5, 0.0, 0.1), (0.0, 0.35, 0.0), (0.2, 1.0, 0.2), (0.0, 0.0, 0.0), (0.05, 0.05, 0.05)]
    for seed, ratios in enumerate(cases):
        visual, temporal, entropies, mask = random_batch(seed)
        temporal = None if seed == 1 else temporal
        lists = [None if x is None else x.tolist() for x in (visual, temporal, entropies)]
        expected = torch.tensor(loop_weights(*lists, mask.tolist(), ratios, preset, weighting))
        names = ("visual_keep_ratio", "temporal_keep_ratio", "entropy_keep_ratio")
        options = dict(zip(names, ratios, strict=True)) | {"preset": preset, "weighting": weighting}
        found = ktr_token_weights(visual, temporal, entropies, mask.long(), **options).weights
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        narrow = [None if x is None else x.float() for x in (visual, temporal, entropies)]
        torch.testing.assert_close(ktr_token_weights(*narrow, mask, **options).weights, expected, atol=1e-4, rtol=0)


# ---- properties ----

bounded = settings(max_examples=50, deadline=None)
seeds = st.integers(0, 100_000)
ratio = st.floats(0, 1)
options_of = st.fixed_dictionaries(
    {
        "visual_keep_ratio": ratio,
        "temporal_keep_ratio": ratio,
        "entropy_keep_ratio": ratio,
        "preset": st.sampled_from(["paper", "release"]),
        "weighting": st.sampled_from(WEIGHTINGS),
    }
)


@bounded
@given(seed=seeds, options=options_of)
def test_weights_lie_between_zero_and_one(seed, options):
    *signals, mask = random_batch(seed, torch.float32)
    found = ktr_token_weights(*signals, mask, **options).weights
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (found >= 0).all()
    assert (found <= 1 + 1e-6).all()
    assert (found[~mask] == 0).all()


@bounded
@given(seed=seeds, options=options_of, name=st.sampled_from(["visual", "temporal", "entropy"]), missing=st.booleans())
def test_any_ratio_of_one_is_neutral(seed, options, name, missing):
    visual, temporal, entropies, mask = random_batch(seed, torch.float32)
    options = options | {f"{name}_keep_ratio": 1.0}
    visual, temporal = (None, None) if missing else (visual, temporal)
    assert torch.equal(ktr_token_weights(visual, temporal, entropies, mask, **options).weights, mask.float())


@bounded
@given(seed=seeds, options=options_of)
def test_permuting_completions_permutes_weights(seed, options):
    *signals, mask = random_batch(seed, torch.float32)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    found = ktr_token_weights(*(x[order] for x in signals), mask[order], **options).weights
    torch.testing.assert_close(found, ktr_token_weights(*signals, mask, **options).weights[order])


@bounded
@given(seed=seeds, options=options_of, poison=st.sampled_from([NAN, math.inf, -math.inf, 99.0]))
def test_padding_never_reaches_the_weights(seed, options, poison):
    *signals, mask = random_batch(seed, torch.float32)
    before = [x.clone() for x in signals]
    clean = ktr_token_weights(*(x.masked_fill(~mask, 0.0) for x in signals), mask, **options)
    longer = [torch.nn.functional.pad(x.masked_fill(~mask, poison), (0, 3), value=poison) for x in signals]
    found = ktr_token_weights(*longer, torch.nn.functional.pad(mask, (0, 3)), **options)
    torch.testing.assert_close(found.weights[:, :-3], clean.weights)
    assert (found.weights[:, -3:] == 0).all()
    for name, value in found.metrics.items():
        assert float(value) == pytest.approx(float(clean.metrics[name]), abs=1e-6)
    for tensor, copy in zip(signals, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


@bounded
@given(seed=seeds, options=options_of)
def test_softer_never_means_less_than_hard_and_softmax_keeps_its_total(seed, options):
    *signals, mask = random_batch(seed, torch.float32)
    every = {w: ktr_token_weights(*signals, mask, **(options | {"weighting": w})).weights for w in WEIGHTINGS}
    for weighting in ("linear", "sigmoid", "exponential"):
        assert (every[weighting] >= every["hard"] - 1e-6).all()
    torch.testing.assert_close(every["softmax"].sum(-1), every["hard"].sum(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(dtype):
    *signals, mask = random_batch(5, dtype)
    found = ktr_token_weights(*signals, mask).weights
    assert torch.equal(found, ktr_token_weights(*(x.double() for x in signals), mask).weights)
