"""APPO: frames, perception tokens and weights against hand numbers and a plain loop."""

import itertools
import math
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import appo_token_weights, select_frames
from trl_perception.objectives.appo import FramesIrrelevantWarning, _warn_frames_irrelevant, weights_of_frames

pytestmark = pytest.mark.filterwarnings("ignore::trl_perception.objectives.appo.FramesIrrelevantWarning")
NAN = math.nan
LN2 = math.log(2)


# One group to work by hand: a good completion looks at frame 0, a bad one at frame 1.
ATTENTION = torch.tensor(
    [
        [[0.5, 0.2], [0.1, 0.2], [0.3, 0.2], [NAN, NAN]],
        [[0.1, 0.6], [0.4, 0.1], [0.2, 0.1], [0.15, 0.04]],
    ]
)
REWARDS = torch.tensor([1.0, 0.0])
MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])
PROBABILITIES = torch.tensor(
    [
        [[1.0, 0.0], [0.5, 0.5], [0.75, 0.25], [NAN, NAN]],
        [[0.5, 0.5], [0.0, 1.0], [0.25, 0.75], [0.5, 0.5]],
    ]
)


def by_hand(**options):
    log_probs = PROBABILITIES.log()
    defaults = {"top_tokens": 1, "top_frames": 1, "tokens_per_frame": 2}
    return appo_token_weights(ATTENTION, REWARDS, MASK, lambda g, t: log_probs[g, t], **(defaults | options))


def of_frames_by_hand(frames):
    log_probs, options = PROBABILITIES.log(), {"divergence": "kl", "normalizer": "groups", "missing_ranks": "skip"}
    options |= {"tokens_per_frame": 2, "reward_threshold": 0.5, "alpha": 0.7}
    return weights_of_frames(ATTENTION, REWARDS, MASK, lambda g, t: log_probs[g, t], frames, **options)


def frames_by_hand(rewards=REWARDS, **options):
    defaults = {"top_tokens": 1, "top_frames": 1, "reward_threshold": 0.5, "strategy": "soft"}
    return select_frames(ATTENTION, rewards, MASK, **(defaults | options)).tolist()


def test_select_frames_by_hand():
    # Attn(o_0) = (.5, .2) chooses frame 0; Attn(o_1) = (.4, .6) chooses frame 1
    assert frames_by_hand(strategy="soft") == [True, False]
    assert frames_by_hand(strategy="hard") == [True, False]
    assert frames_by_hand(strategy="all") == [True, True]
    # with two frames each, every completion chooses both, and the difference is empty
    assert frames_by_hand(strategy="soft", top_frames=2) == [True, True]
    assert frames_by_hand(strategy="hard", top_frames=2) == [False, False]


def test_mean_of_the_k1_largest_is_taken_frame_by_frame():
    # completion 1, K1 = 4: Attn = (.85/4, .84/4) chooses frame 0; K1 = 1: (.4, .6) chooses frame 1
    assert frames_by_hand(rewards=torch.tensor([0.0, 1.0]), top_tokens=4) == [True, False]
    assert frames_by_hand(rewards=torch.tensor([0.0, 1.0]), top_tokens=1) == [False, True]


def test_tied_frames_go_to_the_earlier():
    chosen = select_frames(
        torch.ones(1, 2, 3),
        torch.ones(1),
        torch.ones(1, 2),
        top_tokens=1,
        top_frames=2,
        reward_threshold=0.5,
        strategy="soft",
    )
    assert chosen.tolist() == [True, True, False]


@pytest.mark.parametrize("strategy", ["hard", "soft"])
def test_no_good_completion_selects_no_frame(strategy):
    assert frames_by_hand(rewards=torch.tensor([0.0, 0.0]), strategy=strategy) == [False, False]


def test_no_good_completion_leaves_all_with_the_frames_of_the_bad():
    # both are S2: frames 0 and 1
    assert frames_by_hand(rewards=torch.tensor([0.0, 0.0]), strategy="all") == [True, True]


def test_soft_or_all_takes_every_vote_where_nobody_succeeds():
    """The release's "soft"."""
    assert frames_by_hand(strategy="soft_or_all") == [True, False]
    assert frames_by_hand(rewards=torch.tensor([0.0, 0.0]), strategy="soft_or_all") == [True, True]


def test_no_bad_completion_makes_hard_equal_soft():
    both_good = torch.tensor([1.0, 0.5])  # .5 is not below tau
    assert frames_by_hand(rewards=both_good, strategy="hard") == [True, True]
    assert frames_by_hand(rewards=both_good, strategy="soft") == [True, True]


def test_k1_and_k2_are_clamped():
    # K1 = 99: Attn(o_0) = (.9/3, .6/3), the mean of three valid tokens, chooses frame 0; K2 = 99 takes both frames
    assert frames_by_hand(top_tokens=99) == [True, False]
    assert frames_by_hand(top_frames=99) == [True, True]


def test_a_completion_without_tokens_chooses_nothing():
    mask = torch.tensor([[False] * 4, [True] * 4])
    chosen = select_frames(
        ATTENTION, torch.tensor([NAN, 1.0]), mask, top_tokens=1, top_frames=1, reward_threshold=0.5, strategy="all"
    )
    assert chosen.tolist() == [False, True]


def test_rewards_at_the_threshold_count_as_good_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rewards = torch.tensor([0.7, 0.0], dtype=dtype)
        assert frames_by_hand(rewards=rewards, reward_threshold=0.7) == [True, False]


def test_weights_by_hand():
    # Frame 0, K3 = 2. Completion 0: tokens 0, 2; completion 1: tokens 1, 2. Ranks by position:
    # rank 0: (1, 0) against (0, 1), D = ln 2; rank 1: (.75, .25) against (.25, .75), D = .130812
    # d = (1, 0): weights 1 + .7 and 1; the others stay 1, padding is 0
    expected = torch.tensor([[1.7, 1.0, 1.0, 0.0], [1.0, 1.7, 1.0, 1.0]])
    torch.testing.assert_close(by_hand().weights, expected)


def test_weights_between_the_extremes_by_hand():
    # K3 = 3. Completion 0: tokens 0, 1, 2; completion 1: tokens 1, 2, 3 (.4, .2, .15).
    # rank 0: (1, 0), (0, 1): D = ln 2 = .693147
    # rank 1: (.5, .5), (.25, .75): m = (.375, .625), KL = .5 ln(.5/.375) + .5 ln(.5/.625) = .143841 - .111572 = .032269
    #         and .25 ln(.25/.375) + .75 ln(.75/.625) = -.101366 + .136741 = .035375; D = .033822
    # rank 2: (.75, .25), (.5, .5): the same by symmetry, .033822
    # so d = (1, 0, 0)
    expected = torch.tensor([[1.7, 1.0, 1.0, 0.0], [1.0, 1.7, 1.0, 1.0]])
    torch.testing.assert_close(by_hand(tokens_per_frame=3).weights, expected, atol=1e-6, rtol=0)


def test_a_middle_value_by_hand():
    probabilities = torch.tensor([[[1.0, 0.0], [0.75, 0.25], [0.5, 0.5]], [[0.0, 1.0], [0.25, 0.75], [0.5, 0.5]]])
    attention = torch.ones(2, 3, 1)
    found = appo_token_weights(
        attention, REWARDS, torch.ones(2, 3), lambda g, t: probabilities.log()[g, t], tokens_per_frame=3
    )
    # D = (ln 2, .130812, 0) -> d = (1, .130812 / .693147, 0) = (1, .188722, 0); 1 + .7 d
    expected = torch.tensor([[1.7, 1.132105, 1.0]] * 2)
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=0)
    assert float(found.metrics["appo/divergence_max"]) == pytest.approx(LN2, abs=1e-6)
    assert float(found.metrics["appo/divergence_mean"]) == pytest.approx((LN2 + 0.130812) / 3, abs=1e-6)


def test_normalizers_by_hand():
    # Both frames selected. Frame 1, K3 = 2: completion 0 has three ties (.2): tokens 0, 1; completion 1: tokens 0, 1.
    # rank 0: (1, 0), (.5, .5): m = (.75, .25); KL = ln(4/3) = .287682 and .5 ln(2/3) + .5 ln 2 = .143841; D = .215762
    # rank 1: (.5, .5), (0, 1): the mirror image, D = .215762: all equal, d = (0, 0)
    # Frame 0 gives d = 1 to token 0 of completion 0 and token 1 of completion 1, which frame 1 also contains (d = 0).
    # groups: (1 + 0) / 2 frames that contain it -> 1.35; frames: / 2 selected -> 1.35
    expected = torch.tensor([[1.35, 1.0, 1.0, 0.0], [1.0, 1.35, 1.0, 1.0]])
    torch.testing.assert_close(by_hand(strategy="all").weights, expected)
    torch.testing.assert_close(by_hand(strategy="all", normalizer="frames").weights, expected)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([True, True], [[1.35, 1.0, 1.0, 0.0], [1.0, 1.35, 1.0, 1.0]]),  # as above
        ([True, False], [[1.7, 1.0, 1.0, 0.0], [1.0, 1.7, 1.0, 1.0]]),  # as in test_weights_by_hand
        ([False, True], [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),  # equal disagreement at every rank
        ([False, False], [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),
    ],
)
def test_frames_that_are_given_by_hand(frames, expected):
    found = of_frames_by_hand(torch.tensor(frames))
    torch.testing.assert_close(found.weights, torch.tensor(expected))
    assert float(found.metrics["appo/frames_selected"]) == sum(frames)


def test_normalizers_differ_on_a_token_of_one_frame():
    attention = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.1, 0.8], [0.2, 0.9]]] * 2)
    probabilities = torch.tensor([[[1.0, 0.0], [0.5, 0.5]] * 2, [[0.0, 1.0], [0.5, 0.5]] * 2])
    arguments = attention, torch.tensor([1.0, 1.0]), torch.ones(2, 4), lambda g, t: probabilities.log()[g, t]
    options = {"top_tokens": 1, "top_frames": 2, "tokens_per_frame": 2}
    # frame 0 holds tokens 0, 1; frame 1 holds tokens 2, 3; D = (ln 2, 0) on each, d = (1, 0)
    # groups: 1 / 1 -> 1.7; frames: 1 / 2 selected -> 1.35
    groups = appo_token_weights(*arguments, **options)
    frames = appo_token_weights(*arguments, normalizer="frames", **options)
    torch.testing.assert_close(groups.weights, torch.tensor([[1.7, 1.0, 1.7, 1.0]] * 2))
    torch.testing.assert_close(frames.weights, torch.tensor([[1.35, 1.0, 1.35, 1.0]] * 2))


def test_release_divergence_by_hand():
    # ln p: rank 0 (-1, -1), (-1, -3): mean (-1, -2); c = (0, -1) and (0, 1)
    #   exp(c) - c - 1 = e^-1 = .367879 and e - 2 = .718282; D = (.367879 + .718282) / 2 = .543081
    # rank 1: (-1, -1), (-1, -2): mean (-1, -1.5), c = -.5 and .5: .106531 and .148721; D = .127626
    # rank 2: equal, D = 0.   d = (1, .127626 / .543081 = .235003, 0)
    log_probs = torch.tensor([[[-1.0, -1.0]] * 3, [[-1.0, -3.0], [-1.0, -2.0], [-1.0, -1.0]]])
    found = appo_token_weights(
        torch.ones(2, 3, 1), REWARDS, torch.ones(2, 3), lambda g, t: log_probs[g, t], divergence="release"
    )
    torch.testing.assert_close(found.weights, torch.tensor([[1.7, 1 + 0.7 * 0.235003, 1.0]] * 2), atol=1e-5, rtol=0)


def test_release_divergence_clamps_and_takes_zeros_to_their_limit():
    # ln p = (0, -inf) against (-inf, 0): c = +-11 everywhere; e^11 - 12 and e^-11 + 10, each on one entry a member
    log_probs = torch.tensor([[[0.0, -math.inf]] * 2, [[-math.inf, 0.0], [0.0, -math.inf]]])
    found = appo_token_weights(
        torch.ones(2, 2, 1), REWARDS, torch.ones(2, 2), lambda g, t: log_probs[g, t], divergence="release"
    )
    expected = math.exp(11) - 12 + math.exp(-11) + 10
    assert float(found.metrics["appo/divergence_max"]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found.weights, torch.tensor([[1.7, 1.0]] * 2))


def test_no_selected_frame_gives_ones_and_is_logged():
    log_probs = PROBABILITIES.log()
    found = appo_token_weights(ATTENTION, torch.zeros(2), MASK, lambda g, t: pytest.fail("nothing to ask for"))
    assert torch.equal(found.weights, MASK.float())
    assert float(found.metrics["appo/no_frame"]) == 1.0
    assert float(found.metrics["appo/frames_selected"]) == 0.0
    found = appo_token_weights(ATTENTION, torch.ones(2), MASK, lambda g, t: log_probs[g, t])
    assert float(found.metrics["appo/no_frame"]) == 0.0


def test_a_rank_of_one_completion_takes_no_part():
    # lengths 3 and 1 on one frame, every token a perception token: only rank 0 is shared; D[0] alone gives d = 0,
    # and ranks 1, 2 of completion 0 have no counterpart and are not requested
    asked = []
    log_probs = torch.tensor([[[1.0, 0.0], [0.3, 0.7], [0.6, 0.4]], [[0.0, 1.0], [NAN, NAN], [NAN, NAN]]]).log()

    def log_probs_at(g, t):
        asked.extend(zip(g.tolist(), t.tolist(), strict=True))
        return log_probs[g, t]

    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = appo_token_weights(torch.ones(2, 3, 1), REWARDS, mask, log_probs_at)
    assert torch.equal(found.weights, mask.float())
    assert sorted(asked) == [(0, 0), (1, 0)]


def test_missing_ranks_by_hand():
    # One frame, lengths 3 and 1, N = 2. "uniform": completion 1 has (.5, .5) at ranks 1 and 2.
    # rank 0: (1, 0) against (0, 1): D = ln 2 = .693147
    # rank 1: (.5, .5) against (.5, .5): D = 0
    # rank 2: (.75, .25) against (.5, .5): m = (.625, .375), KL .75 ln 1.2 + .25 ln(2/3) = .136741 - .101366 = .035375 and
    #         .5 ln .8 + .5 ln(4/3) = -.111572 + .143841 = .032269; D = .033822
    # d = (1, 0, .048795)
    log_probs = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]], [[0.0, 1.0], [NAN, NAN], [NAN, NAN]]]).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = appo_token_weights(
        torch.ones(2, 3, 1), REWARDS, mask, lambda g, t: log_probs[g, t], missing_ranks="uniform"
    )
    expected = torch.tensor([[1.7, 1.0, 1 + 0.7 * 0.048795], [1.7, 0.0, 0.0]])
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=0)


def test_one_token_a_frame_gives_ones():
    # one rank a frame: the smallest divergence is the largest, d = 0
    assert by_hand(tokens_per_frame=1).weights.equal(MASK.float())


def test_identical_completions_give_ones():
    log_probs = torch.randn(1, 12, 30, generator=torch.Generator().manual_seed(0)).log_softmax(-1).expand(4, -1, -1)
    attention = torch.rand(1, 12, 3, generator=torch.Generator().manual_seed(1)).expand(4, -1, -1)
    found = appo_token_weights(
        attention, torch.ones(4), torch.ones(4, 12), lambda g, t: log_probs[g, t], tokens_per_frame=5
    )
    assert torch.equal(found.weights, torch.ones(4, 12))


def test_equal_disagreement_at_every_rank_gives_ones():
    # the two swap their words at every rank: D is the same up to the order of summation
    row = torch.randn(40, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    log_probs = torch.stack([torch.stack([row.roll(t), row.roll(t + 7)]) for t in range(5)], dim=1)
    found = appo_token_weights(torch.ones(2, 5, 1), REWARDS, torch.ones(2, 5), lambda g, t: log_probs[g, t])
    assert torch.equal(found.weights, torch.ones(2, 5))


def test_perception_tokens_of_a_bad_completion_are_lifted_too():
    # credit follows disagreement, not reward: both completions get the same largest weight
    found = by_hand().weights
    assert found[0].max() == found[1].max() > 1


def test_warns_when_every_token_is_a_perception_token():
    _warn_frames_irrelevant.cache_clear()
    with pytest.warns(FramesIrrelevantWarning, match="tokens_per_frame=4 covers whole completions"):
        by_hand(tokens_per_frame=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_hand(tokens_per_frame=3)  # completion 1 has four tokens: the choice is real
        by_hand(tokens_per_frame=4)  # already warned


def test_the_warning_comes_once_a_run():
    # in a fresh interpreter, with warning filters changed in between, as libraries do
    code = (
        "import torch, warnings\n"
        "from trl_perception.objectives import appo_token_weights\n"
        "for step in range(3):\n"
        "    appo_token_weights(torch.ones(2, 3, 1), torch.ones(2), torch.ones(2, 3),\n"
        "                       lambda g, t: torch.zeros(len(g), 1))\n"
        "    with warnings.catch_warnings():\n"
        "        warnings.simplefilter('ignore')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("FramesIrrelevantWarning: tokens_per_frame=64") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "release"}, "strategy is 'release'; wanted one of 'hard', 'soft', 'all'"),
        ({"divergence": "js"}, "divergence is 'js'"),
        ({"normalizer": "mean"}, "normalizer is 'mean'"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"tokens_per_frame": 0}, "tokens_per_frame is 0"),
        ({"missing_ranks": "pad"}, "missing_ranks is 'pad'"),
        ({"top_tokens": 0}, "top_tokens is 0"),
        ({"top_frames": 0}, "top_frames is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        by_hand(**change)


def test_wrong_tensors_are_refused():
    def log_probs_at(g, t):
        return PROBABILITIES.log()[g, t]

    with pytest.raises(ValueError, match=r"rewards has shape \(3,\)"):
        appo_token_weights(ATTENTION, torch.zeros(3), MASK, log_probs_at)
    with pytest.raises(ValueError, match=r"completion_mask has shape \(2, 3\)"):
        appo_token_weights(ATTENTION, REWARDS, MASK[:, :3], log_probs_at)
    with pytest.raises(ValueError, match=r"frame_attention\[0, 3, 0\] is nan"):
        appo_token_weights(ATTENTION, REWARDS, torch.ones(2, 4), log_probs_at)
    with pytest.raises(ValueError, match=r"frames has shape \(3,\)"):
        of_frames_by_hand(torch.ones(3))
    with pytest.raises(ValueError, match=r"rewards\[1\] is nan"):
        appo_token_weights(ATTENTION, torch.tensor([1.0, NAN]), MASK, log_probs_at)
    with pytest.raises(ValueError, match=r"what log_probs_at returned has shape"):
        appo_token_weights(ATTENTION, REWARDS, MASK, lambda g, t: PROBABILITIES.log()[g, t][:1])
    with pytest.raises(ValueError, match="log_probs_at returned rows whose divergence is not finite"):
        appo_token_weights(ATTENTION, REWARDS, MASK, lambda g, t: torch.full((len(g), 2), NAN))


# ---- against a plain loop ----


def loop_weights(
    attention,
    rewards,
    mask,
    log_probs,
    top_tokens,
    top_frames,
    tokens_per_frame,
    strategy,
    alpha,
    divergence,
    normalizer,
    missing_ranks,
):
    """The specification on Python lists: attention[i][j][f], mask[i][j], log_probs[i][j][v]."""
    group = range(len(attention))
    frames = range(len(attention[0][0]))
    valid = [[j for j in range(len(mask[i])) if mask[i][j]] for i in group]
    good, bad = set(), set()
    for i in group:
        if not valid[i]:
            continue
        looked = []
        for f in frames:
            largest = sorted((attention[i][j][f] for j in valid[i]), reverse=True)[:top_tokens]
            looked.append(sum(largest) / len(largest))
        chosen = sorted(frames, key=lambda f: -looked[f])[:top_frames]
        (good if rewards[i] >= 0.5 else bad).update(chosen)
    selected = sorted({"hard": good - bad, "soft": good, "all": good | bad}[strategy])

    credits = {}
    for f in selected:
        tokens = [sorted(sorted(valid[i], key=lambda j: -attention[i][j][f])[:tokens_per_frame]) for i in group]
        measured = {}
        for n in range(tokens_per_frame):
            rows = [log_probs[i][tokens[i][n]] for i in group if n < len(tokens[i])]
            if missing_ranks == "uniform" and rows:
                words = len(rows[0])
                rows += [[-math.log(words)] * words] * (len(tokens) - len(rows))
            if len(rows) >= 2:
                measured[n] = loop_divergence(rows, divergence)
        low, high = min(measured.values(), default=0), max(measured.values(), default=0)
        for i in group:
            for n, j in enumerate(tokens[i]):
                d = (measured[n] - low) / (high - low) if n in measured and high > low else 0.0
                credits.setdefault((i, j), []).append(d)

    weights = []
    for i in group:
        weights.append([])
        for j in range(len(mask[i])):
            found = credits.get((i, j), [])
            count = len(found) if normalizer == "groups" else len(selected)
            weights[i].append(float(mask[i][j]) * (1 + alpha * (sum(found) / count if found else 0.0)))
    return weights


def loop_divergence(rows, divergence):
    words = range(len(rows[0]))
    total = 0.0
    if divergence == "kl":
        mixture = [sum(math.exp(row[v]) for row in rows) / len(rows) for v in words]
        for row in rows:
            total += sum(math.exp(row[v]) * (row[v] - math.log(mixture[v])) for v in words if row[v] > -math.inf)
        return total / len(rows)
    rows = [[max(entry, -1e9) for entry in row] for row in rows]
    for v in words:
        mean = sum(row[v] for row in rows) / len(rows)
        for row in rows:
            c = min(max(mean - row[v], -11.0), 11.0)
            total += math.exp(c) - c - 1
    return total / len(rows)


def random_group(seed, group=4, length=9, frames=5, words=7, zeros=0.0, holes=False):
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(group, length, frames, generator=generator, dtype=torch.float64)
    rewards = torch.rand(group, generator=generator)
    lengths = torch.randint(0, length + 1, (group,), generator=generator)
    mask = torch.arange(length) < lengths.unsqueeze(-1)
    if holes:
        mask = torch.rand(group, length, generator=generator) < 0.7
    logits = 2 * torch.randn(group, length, words, generator=generator, dtype=torch.float64)
    logits[..., 1:] = torch.where(
        torch.rand(group, length, words - 1, generator=generator) < zeros, -math.inf, logits[..., 1:]
    )
    attention[~mask] = NAN
    return attention, rewards, mask, logits.log_softmax(-1).masked_fill(~mask.unsqueeze(-1), NAN)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("zeros", [0.0, 0.3])
@pytest.mark.parametrize(
    ("strategy", "divergence", "normalizer", "missing_ranks"),
    list(
        itertools.product(["hard", "soft", "all"], ["kl", "release"], ["groups", "frames"], ["skip", "uniform"]),
    ),
)
def test_weights_match_the_loop(strategy, divergence, normalizer, missing_ranks, zeros, holes):
    for seed in range(6):
        attention, rewards, mask, log_probs = random_group(seed, zeros=zeros, holes=holes)
        options = {"top_tokens": 1 + seed % 4, "top_frames": 1 + seed % 3, "tokens_per_frame": 2 + seed % 5}
        options |= {"strategy": strategy, "alpha": 0.3 + seed / 4, "divergence": divergence}
        options |= {"normalizer": normalizer, "missing_ranks": missing_ranks}
        expected = loop_weights(attention.tolist(), rewards.tolist(), mask.tolist(), log_probs.tolist(), **options)
        exact = appo_token_weights(attention, rewards, mask, lambda g, t, x=log_probs: x[g, t], **options)
        torch.testing.assert_close(exact.weights, torch.tensor(expected), atol=1e-6, rtol=1e-6)
        single = log_probs.float()
        found = appo_token_weights(attention.float(), rewards, mask.long(), lambda g, t, x=single: x[g, t], **options)
        torch.testing.assert_close(found.weights, torch.tensor(expected), atol=1e-4, rtol=0)


# ---- properties ----

bounded = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 100_000)


def weigh(attention, rewards, mask, log_probs, **options):
    defaults = {"top_tokens": 3, "top_frames": 2, "tokens_per_frame": 4}
    return appo_token_weights(attention, rewards, mask, lambda g, t: log_probs[g, t], **(defaults | options))


@bounded
@given(seed=seeds, alpha=st.floats(0, 3), strategy=st.sampled_from(["hard", "soft", "all"]))
def test_weights_lie_between_one_and_one_plus_alpha(seed, alpha, strategy):
    attention, rewards, mask, log_probs = random_group(seed, zeros=0.2, holes=True)
    found = weigh(attention, rewards, mask, log_probs, alpha=alpha, strategy=strategy).weights
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (found[~mask] == 0).all()
    assert (found[mask] >= 1).all()
    assert (found[mask] <= 1 + alpha + 1e-5).all()


@bounded
@given(seed=seeds)
def test_alpha_zero_is_neutral(seed):
    attention, rewards, mask, log_probs = random_group(seed)
    assert torch.equal(weigh(attention, rewards, mask, log_probs, alpha=0.0).weights, mask.float())


@bounded
@given(seed=seeds)
def test_permuting_completions_permutes_weights(seed):
    attention, rewards, mask, log_probs = random_group(seed)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    found = weigh(attention[order], rewards[order], mask[order], log_probs[order]).weights
    torch.testing.assert_close(found, weigh(attention, rewards, mask, log_probs).weights[order])


@bounded
@given(seed=seeds, poison=st.sampled_from([NAN, math.inf, -math.inf, 99.0]))
def test_padding_never_reaches_the_weights(seed, poison):
    attention, rewards, mask, log_probs = random_group(seed, holes=True)
    clean = weigh(attention, rewards, mask, log_probs).weights
    poisoned = attention.masked_fill(~mask.unsqueeze(-1), poison)
    assert torch.equal(clean, weigh(poisoned, rewards, mask, log_probs.nan_to_num(poison)).weights)
    longer = torch.nn.functional.pad
    found = weigh(
        longer(attention, (0, 0, 0, 3), value=poison), rewards, longer(mask, (0, 3)), longer(log_probs, (0, 0, 0, 3))
    )
    assert torch.equal(found.weights[:, :-3], clean)
    assert (found.weights[:, -3:] == 0).all()


@bounded
@given(seed=seeds)
def test_no_token_beside_the_completions_is_asked_for(seed):
    attention, rewards, mask, log_probs = random_group(seed, group=5, length=40, frames=6)
    asked = []

    def log_probs_at(g, t):
        assert 0 < len(g) == len(t) <= 64
        assert not torch.is_grad_enabled()
        asked.extend(zip(g.tolist(), t.tolist(), strict=True))
        return log_probs[g, t]

    appo_token_weights(attention, rewards, mask, log_probs_at, tokens_per_frame=8)
    assert all(mask[g, t] for g, t in asked)


def test_inputs_are_not_written_to_and_half_precision_is_read():
    group = random_group(7)
    before = [tensor.clone() for tensor in group]
    weigh(*group)
    for tensor, copy in zip(group, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
    for dtype in (torch.bfloat16, torch.float16):
        attention, rewards, mask, log_probs = group
        found = weigh(attention.to(dtype), rewards, mask, log_probs.to(dtype)).weights
        expected = weigh(attention.to(dtype).double(), rewards, mask, log_probs.to(dtype).double()).weights
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
