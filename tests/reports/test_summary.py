"""Summaries of recorded groups, by hand."""

import pytest

from tests.reports.conftest import make_completion, make_group
from trl_perception.reports.html import spread
from trl_perception.reports.signals import main_signal, scales
from trl_perception.reports.stills import MOST_PICTURES, worth_showing
from trl_perception.reports.summary import evidence_attention, evidence_frames, token_means


def test_tokens_by_mean_weight():
    groups = [
        make_group("c", completions=[make_completion(["a", "b", "rare"], advantage=1.0, weights=[w, 2.0, 9.0])])
        for w in (0.0, 0.5, 1.0, 0.5, 0.5)
    ]
    for group in groups[1:]:
        group["completions"][0]["tokens"][2] = "other"
    # a: (0 + .5 + 1 + .5 + .5) / 5 = 0.5, b: 2 each; "other" comes four times and "rare" once, too seldom
    means = token_means(groups)
    assert means.highest == [("b", 2.0, 5)]
    assert means.lowest == [("a", 0.5, 5)]


def test_the_main_signal_is_the_methods():
    weighed = make_group("c")
    assert main_signal([weighed]) == "token_weights"
    for completion in weighed["completions"]:
        completion["token_weights"] = None
    assert main_signal([weighed]) == "visual_dependency"
    for completion in weighed["completions"]:
        completion["signals"] = []
    assert main_signal([weighed]) == "credit"
    assert token_means([weighed]) is None


def test_scales_hold_the_values():
    found = {scale.name: scale for scale in scales([make_group("c")])}
    weights, credit = found["token_weights"], found["credit"]
    assert (weights.low, weights.high, weights.signed) == (0.25, 2.5, False)
    # credit: -1 * 2 and 1 * 2.5, so that 0 is the middle of [-2.5, 2.5]
    assert (credit.low, credit.high, credit.signed, credit.beyond) == (-2.5, 2.5, True, False)


def test_evidence_by_hand():
    group = make_group("c")
    # cells at 0, 0.5, 1 and 1.5 s: the span [0.5, 1) is the second
    assert evidence_frames(group) == [False, True, False, False]
    on, chance = evidence_attention([group])
    assert on == [(1, pytest.approx(0.2))]  # 0.2 of 0.1 + 0.2 + 0.3 + 0.4 = 1
    assert chance == [(1, 0.25)]
    assert evidence_attention([make_group("c", evidence=[[0.0, 9.0]])]) == ([], [])  # all is evidence
    assert evidence_frames(make_group("c", evidence=None)) == [False] * 4


def test_pictures_are_of_marked_frames_and_those_looked_at():
    assert worth_showing([0.0] * 5, [False] * 5) == [0, 1, 2, 3, 4]
    scores, marked = [0.0] * 100, [False] * 100
    scores[41], marked[73] = 1.0, True
    shown = worth_showing(scores, marked)
    assert len(shown) == MOST_PICTURES
    assert {0, 41, 73, 99} <= set(shown)


def test_groups_are_spread_over_the_run():
    groups = [make_group("c", step=step) for step in (1, 2, 3, 4, 5) for _ in range(2)]
    # last, first, then the step farthest from both, 3
    assert [group["step"] for group in spread(groups, 6, 10_000)] == [1, 1, 3, 3, 5, 5]
    # a group has 6 tokens: two fit into 15
    assert [group["step"] for group in spread(groups, 6, 15)] == [5, 5]
    assert spread([], 6, 15) == []
