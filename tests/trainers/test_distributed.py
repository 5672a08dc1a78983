"""Processes (here threads) that need different forwards run the same series of forwards."""

import threading

import pytest
import torch
from torch import nn

from trl_perception.modeling import Head
from trl_perception.trainers import distributed
from trl_perception.trainers.distributed import CollectiveScheduler

PATIENCE = 60  # seconds; reached only if a test fails


class Rendezvous:
    """State shared by the threads: every gather ends when all threads have joined it."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=PATIENCE)
        self.values = [None] * count


class Accelerator:
    """The part of accelerate's Accelerator that `CollectiveScheduler` uses."""

    device = torch.device("cpu")

    def __init__(self, rendezvous, rank):
        self.rendezvous, self.rank, self.num_processes = rendezvous, rank, len(rendezvous.values)

    def gather(self, tensor):
        self.rendezvous.values[self.rank] = tensor
        self.rendezvous.barrier.wait()
        everyone = torch.cat(self.rendezvous.values)
        self.rendezvous.barrier.wait()
        return everyone


def models(count):
    return [nn.Linear(1, 1) for _ in range(count)]


def together(*works, shared):
    """The forwards of each process in order, where each does its own work inside one section."""
    rendezvous, seen = Rendezvous(len(works)), [[] for _ in works]
    failures = []

    def process(rank):
        steps = CollectiveScheduler(
            Accelerator(rendezvous, rank), True, lambda model: seen[rank].append((shared.index(model), "empty"))
        )
        for model in shared:
            steps.share(model)

        def read(number):
            steps.before_forward(shared[number])
            seen[rank].append((number, "own"))

        try:
            with steps.section():
                works[rank](read, steps)
        except threading.BrokenBarrierError as error:
            failures.append(error)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "a process waited for the others in vain"
    return seen


def test_fewer_forwards_are_filled_up_with_empty_ones():
    seen = together(
        lambda read, steps: [read(0), read(0), read(0)],
        lambda read, steps: None,
        lambda read, steps: [read(0), read(0)],
        shared=models(1),
    )
    # three collectives: all three are the first's own, none the second's, two the third's
    assert seen[0] == [(0, "own")] * 3
    assert seen[1] == [(0, "empty")] * 3
    assert seen[2] == [(0, "own")] * 2 + [(0, "empty")]


def test_different_models_are_taken_in_one_order():
    seen = together(
        lambda read, steps: [read(1), read(0)], lambda read, steps: [read(0), read(0), read(1)], shared=models(2)
    )
    # the smaller number goes first: 0 (second's), 0 (second's), 1 (both), 0 (first's)
    assert [[number for number, _ in of_one] for of_one in seen] == [[0, 0, 1, 0]] * 2
    assert [whose for _, whose in seen[0]] == ["empty", "empty", "own", "own"]
    assert [whose for _, whose in seen[1]] == ["own", "own", "own", "empty"]


def test_a_head_is_gathered_once_by_all(monkeypatch):
    gathered = []
    monkeypatch.setattr(distributed, "head_is_sharded", lambda model: True)
    monkeypatch.setattr(
        distributed, "gather_lm_head", lambda model: gathered.append(model) or Head(model.weight, None, None)
    )
    shared = models(1)
    seen = together(
        lambda read, steps: [steps.head_of(shared[0]), steps.head_of(shared[0])],
        lambda read, steps: [read(0)],
        shared=shared,
    )
    assert len(gathered) == 2  # one per process
    assert [number for number, _ in seen[0]] == [0]
    assert seen[1] == [(0, "own")]


def test_without_sharding_nothing_is_communicated():
    def gather(tensor):
        raise AssertionError("a process asked the others")

    accelerator = Accelerator(Rendezvous(2), 0)
    accelerator.gather = gather
    model = nn.Linear(1, 1)
    steps = CollectiveScheduler(accelerator, False, empty_forward=gather)
    steps.share(model)
    with steps.section():
        steps.before_forward(model)


def test_after_an_error_the_section_is_closed():
    accelerator = Accelerator(Rendezvous(1), 0)
    accelerator.num_processes = 2
    steps = CollectiveScheduler(accelerator, True, empty_forward=lambda model: None)
    with pytest.raises(ValueError, match="mine"), steps.section():
        raise ValueError("mine")
    steps.before_forward(nn.Linear(1, 1))  # no communication
    assert not steps._open
