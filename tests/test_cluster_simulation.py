"""The data of runs on many processes: who gets which rows when, what is decoded, and where such a run resumes."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate import skip_first_batches

from benchmarks.cluster_simulation import SETTINGS, decoded_in_nodes, figures, processes, questions, simulate
from trl_perception.callbacks.checkpoints.run_state import skip_epochs
from trl_perception.media import MediaCache, MediaRequest

GROUP, STEPS = SETTINGS["num_generations"], SETTINGS["gradient_accumulation_steps"]
SIZES = [(2, 2), pytest.param((8, 8), marks=pytest.mark.slow)]  # nodes, processes of each


@pytest.fixture
def one_lock_a_thread(monkeypatch):
    """Decoding takes a while, so that processes want the same clips; a thread that holds a lock and wants another one fails."""
    held, making, read = threading.local(), MediaCache._making, MediaRequest.read

    @contextmanager
    def making_one(self, path):
        assert not getattr(held, "path", None)
        held.path = path
        with making(self, path):
            yield
        held.path = None

    monkeypatch.setattr(MediaCache, "_making", making_one)
    monkeypatch.setattr(MediaRequest, "read", lambda *args: time.sleep(0.02) or read(*args))


def expected_rollouts(rows, prompts, epochs, seed=42):
    """Ids of the rows of each rollout of a single process: an epoch is one permutation, cut into rollouts."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(rows), generator=generator).tolist() for _ in range(epochs)]
    return [
        [str(row) for row in order[at : at + prompts]]
        for order in orders
        for at in range(0, len(rows) - prompts + 1, prompts)
    ]


@pytest.mark.parametrize("iterations", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sizes", SIZES)
def test_ranks_share_the_rows_of_a_single_process_and_decode_once_a_node(
    tmp_path, one_lock_a_thread, sizes, iterations
):
    nodes, per_node = sizes
    count, epochs = nodes * per_node, 2
    prompts = 2 * count  # of a rollout: two of each rank, 4 * 2 / 4
    rows = questions(tmp_path, 3 * prompts + 1, clips=3 * count // 4)  # the last row of an order has no rollout
    ranks = simulate(
        rows,
        tmp_path / "kept",
        nodes=nodes,
        per_node=per_node,
        epochs=epochs,
        media_prefetch=1,
        num_iterations=iterations,
    )
    wanted = expected_rollouts(rows, prompts, epochs)
    assert len(wanted) == 6
    for number, names in enumerate(wanted):
        # The ranks in their order have the prompts in theirs, all completions of a prompt on one rank.
        drawn = [name for rank in ranks for name in rank.rollouts[number]]
        assert drawn == [name for name in names for _ in range(GROUP)]
    for epoch in (wanted[:3], wanted[3:]):
        assert len({name for names in epoch for name in names}) == 3 * prompts
    for rank in ranks:
        updates = STEPS * iterations
        assert [len(rank.rollouts), len(rank.updates)] == [6, 6 * updates]
        for number, rollout in enumerate(rank.rollouts):
            parts = rank.updates[number * updates : (number + 1) * updates]
            # Every micro-batch is one whole group, and each iteration makes an update on every completion of the rollout.
            assert all(part == [part[0]] * GROUP for part in parts)
            for at in range(0, updates, STEPS):
                assert Counter(chain(*parts[at : at + STEPS])) == Counter(rollout)
            # As a rollout begins, the media of the next one of the epoch are asked for, and no others.
            following = rank.rollouts[number + 1][::GROUP] if number % 3 < 2 else []
            assert rank.asked[number] == following
    clip_of = {row["id"]: row["videos"][0] for row in rows}
    for node, decoded in enumerate(decoded_in_nodes(ranks, per_node)):
        members = ranks[node * per_node : (node + 1) * per_node]
        used = {clip_of[name] for rank in members for rollout in rank.rollouts for name in rollout}
        assert decoded == Counter(used)
    assert not list((tmp_path / "kept").rglob("*.lock"))


@pytest.mark.slow
def test_without_a_folder_ranks_of_a_node_decode_the_same_clips(tmp_path):
    rows = questions(tmp_path, 24, clips=3)
    ranks = simulate(rows, tmp_path / "kept", nodes=1, per_node=4, cache=False)
    # Three rollouts of two prompts on each of four ranks: a clip of 3 is wanted by most of them in each.
    assert decoded_in_nodes(ranks, 4)[0].total() > 6
    assert sum(rank.found.total() for rank in ranks) == 0


@pytest.mark.parametrize("sizes", SIZES)
def test_each_rank_resumes_with_the_rows_that_follow(make_trainer, sizes):
    count, prompt = sizes[0] * sizes[1], [{"role": "user", "content": "?"}]
    rows = [{"prompt": prompt, "id": str(row)} for row in range(6 * count)]
    with processes(count) as become:
        trainer = make_trainer(rows, **{**SETTINGS, "check_rows": False})
        for rank in range(count):
            become(rank)
            loader = trainer.get_train_dataloader()
            whole = [[[row["id"] for row in batch] for batch in loader] for _ in range(2)]
            resumed = trainer.get_train_dataloader()
            skip_epochs(resumed, 1)
            rest = [[row["id"] for row in batch] for batch in skip_first_batches(resumed, 3)]
            assert rest == whole[1][3:]
            assert len(rest) == 3  # of three rollouts with two micro-steps


@pytest.mark.slow
def test_the_figures_of_the_page_are_those_of_the_simulation(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
    found = figures(tmp_path, nodes=8, per_node=8, clips=64, epochs=2)
    assert found["no media_cache_dir"] == (508, 4)
    assert "| none | 508 | 4 times in a node |" in page
    assert found["a folder on each node"] == found["the same, media_prefetch 1"] == (350, 1)
    assert "| a folder on each node, with or without `media_prefetch` | 350 | once in a node |" in page
    assert found["one folder for all nodes"] == (64, 1)
    assert "| one folder for all nodes | 64 | once |" in page
