"""Streams of several shards: rollouts of all processes have the rows of a single process."""

from itertools import chain

import pytest
from datasets import Dataset, IterableDataset

from benchmarks.cluster_simulation import SETTINGS, processes

LENGTHS = [9, 4, 13, 7]  # of shards


def rows_of(shards):
    for shard in shards:
        for row in range(LENGTHS[shard]):
            yield {"prompt": [{"role": "user", "content": "?"}], "id": f"{shard}.{row}"}


def stream():
    return IterableDataset.from_generator(rows_of, gen_kwargs={"shards": list(range(4))})


def micro_steps(make_trainer, data, count, **config):
    """Ids of the rows of all processes in each micro-step of two epochs, those of the first process first."""
    found = []
    with processes(count) as become:
        trainer = make_trainer(data, **{**SETTINGS, "gradient_accumulation_steps": 4 // count, **config})
        for rank in range(count):
            become(rank)
            loader, epochs = trainer.get_train_dataloader(), []
            for epoch in range(2):
                loader.set_epoch(epoch)
                epochs.append([[row["id"] for row in batch] for batch in loader])
            found.append(epochs)
    return [[list(chain(*parts)) for parts in zip(*epoch, strict=True)] for epoch in zip(*found, strict=True)]


def rollouts(micro_steps, every):
    return [epoch[::every] for epoch in micro_steps]


@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_have_the_rows_of_a_single_one(make_trainer, shuffle):
    one, again = rollouts(micro_steps(make_trainer, stream(), 1, shuffle_dataset=shuffle), 4)
    found = micro_steps(make_trainer, stream(), 2, shuffle_dataset=shuffle)
    assert rollouts(found, 2) == [one, again]
    # Eight rollouts of four prompts, no prompt twice in an epoch; the one row that is left fills none.
    assert len({name for rollout in one for name in rollout}) == 32
    assert (one == again) is not shuffle
    for rollout, repeated in zip(found[0][::2], found[0][1::2], strict=True):
        assert rollout == repeated


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches"])
def test_batches_that_are_cut_apart_are_refused(make_trainer, name):
    trainer = make_trainer(Dataset.from_list(list(rows_of([0]))), accelerator_config={name: True})
    with pytest.raises(ValueError, match=f"accelerator_config sets {name}, .* Leave {name} out"):
        trainer.get_train_dataloader()


def test_evaluations_read_all_shards_on_all_processes(make_trainer):
    with processes(2) as become:
        trainer = make_trainer(stream(), per_device_eval_batch_size=4, num_generations_eval=2)
        found = []
        for rank in range(2):
            become(rank)
            loader = trainer.get_eval_dataloader(stream())
            found.append([[row["id"] for row in batch] for batch in loader])
    assert len(found[0]) == len(found[1])  # else one would wait for the other
    names = [name for batches in zip(*found, strict=True) for batch in batches for name in batch]
    assert set(names) == {f"{shard}.{row}" for shard, length in enumerate(LENGTHS) for row in range(length)}
