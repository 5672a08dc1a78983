"""Streams whose rows come to every process in one order."""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset
from transformers import TrainingArguments


class StreamInOrder(torch.utils.data.IterableDataset):
    """A stream as a whole, which several processes share row by row.

    A `datasets.IterableDataset` with a shard or more for each process is split by its shards. Then a process has rows of its own
    order: TRL's repetitions of a rollout are no longer where the trainer looks for them, so that some prompts are sampled twice
    and others never, and shards of different lengths end at different steps.
    """

    def __init__(self, rows: IterableDataset):
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Begin another order, if the stream is shuffled."""
        self.rows.set_epoch(epoch)


def in_order(dataset: Any, args: TrainingArguments) -> Any:
    """Return what a loader reads: the dataset, or a stream of several shards in one piece.

    Errors: ValueError for settings under which processes do not get whole groups.
    """
    options = args.accelerator_config
    for name in ("split_batches", "dispatch_batches"):
        if getattr(options, name):
            raise ValueError(
                f"accelerator_config sets {name}, which would cut groups of completions apart. Leave {name} out; "
                "per_device_train_batch_size is the batch of each process."
            )
    is_split = isinstance(dataset, IterableDataset) and dataset.num_shards > 1
    return StreamInOrder(dataset) if is_split else dataset
