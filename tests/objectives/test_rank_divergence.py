"""The comparison in chunks: the same numbers for any chunk size, and rows are freed in time."""

import weakref

import pytest
import torch

from trl_perception.objectives import rank_divergence
from trl_perception.objectives.rank_divergence import rank_divergences


def perception_of(seed, frames=4, group=3, length=30, count=10):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(frames, group, length, generator=generator)
    perception = torch.zeros(frames, group, length, dtype=torch.bool)
    perception.scatter_(-1, scores.topk(count, dim=-1).indices, True)
    return perception, perception.cumsum(-1) - 1


@pytest.mark.parametrize("divergence", ["kl", "release"])
@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_chunks_do_not_change_the_result(monkeypatch, divergence, rows):
    perception, rank = perception_of(0)
    log_probs = torch.randn(3, 30, 11, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    whole = rank_divergences(perception, rank, lambda g, t: log_probs[g, t], divergence)
    monkeypatch.setattr(rank_divergence, "ROWS_AT_ONCE", rows)
    calls = []

    def log_probs_at(g, t):
        assert len(g) <= rows
        calls.extend(zip(g.tolist(), t.tolist(), strict=True))
        return log_probs[g, t]

    found = rank_divergences(perception, rank, log_probs_at, divergence)
    torch.testing.assert_close(found, whole)
    assert {*calls} == {(i, j) for _, i, j in perception.nonzero().tolist()}


def test_frames_that_hold_the_same_tokens_cost_nothing_more():
    perception, rank = perception_of(2, frames=1)
    log_probs = torch.randn(3, 30, 11, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    rows = []
    compare = rank_divergence.mean_kl_to_mixture

    def counted(log_probs, valid):
        rows.append(len(log_probs))
        return compare(log_probs, valid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_divergence, "mean_kl_to_mixture", counted)
        found, compared = rank_divergences(
            perception.expand(5, -1, -1), rank.expand(5, -1, -1), lambda g, t: log_probs[g, t], "kl"
        )
    assert sum(rows) == 10  # ten ranks, compared once and not five times
    assert found.shape == compared.shape == (5, 10)
    assert torch.equal(found, found[:1].expand(5, -1))


def test_rows_are_let_go(monkeypatch):
    # two completions, one frame, 40 ranks, four rows at a time: each row serves one rank, so few are alive at a time
    monkeypatch.setattr(rank_divergence, "ROWS_AT_ONCE", 4)
    perception = torch.ones(1, 2, 40, dtype=torch.bool)
    alive = []
    most = 0

    def log_probs_at(g, t):
        nonlocal most
        most = max(most, sum(block() is not None for block in alive))
        block = torch.randn(len(g), 5).log_softmax(-1)
        alive.append(weakref.ref(block))
        return block

    rank_divergences(perception, perception.cumsum(-1) - 1, log_probs_at, "kl")
    assert len(alive) == 20
    assert most <= 2


def test_a_few_distributions_are_held_whatever_the_number_of_tokens(monkeypatch):
    # four frames which rank every token alike but for one step: tokens 0..39 and 1..40
    held = []
    cat = torch.cat

    def watched(blocks, *args, **kwargs):
        result = cat(blocks, *args, **kwargs)
        if result.ndim == 2:
            held.append(len(result))
        return result

    monkeypatch.setattr(rank_divergence, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(torch, "cat", watched)
    perception = torch.zeros(2, 2, 41, dtype=torch.bool)
    perception[0, :, :40] = True
    perception[1, :, 1:] = True
    log_probs = torch.randn(2, 41, 5).log_softmax(-1)
    rank_divergences(perception, perception.cumsum(-1) - 1, lambda g, t: log_probs[g, t], "kl")
    assert max(held) <= 8  # of 82 distributions


def test_nothing_to_compare():
    perception = torch.zeros(0, 3, 4, dtype=torch.bool)
    found, compared = rank_divergences(perception, perception.long(), lambda g, t: pytest.fail("asked"), "kl")
    assert found.shape == compared.shape == (0, 1)
