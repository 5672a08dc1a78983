"""The data of a run on many GPUs, simulated: `python -m benchmarks.cluster_simulation [--nodes 8 --per_node 8]`.

Prints how often the ranks of a node decode a clip, without and with a cache on disk, and checks the order of the rows.

- Real: the batches that the configuration computes for that many processes; TRL's sampler; accelerate's sharding; the trainer's
  loader, its rows ahead, and how it buffers a rollout and cuts it into micro-batches; prompts, the loader of media, the cache on
  disk with one folder a node, and the decoders.
- Simulated: a rank is a copy of one trainer, and the ranks run beside each other in threads of one process, in step. The processes
  that read ahead are threads. Nothing is sampled, rewarded or trained, and no collective is run. Clips are tiny.
"""

import argparse
import copy
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset

from trl_perception.batch import MicroBatch
from trl_perception.media import loader as media_loader
from trl_perception.trainers import GRPOVideoConfig, GRPOVideoTrainer

PATIENCE = 120  # seconds that a step may take before a rank counts as one that waits for ever
SETTINGS = {"per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 2}
SETTINGS |= {"media_workers": 1, "video_max_frames": 4, "use_cpu": True, "bf16": False, "report_to": "none"}


@contextmanager
def processes(count: int) -> Iterator[Callable[[int], None]]:
    """Context manager in which this process counts as one of several; it yields what sets which one, at first the first."""
    states = [PartialState, AcceleratorState, GradientState]
    kept = [dict(state._shared_state) for state in states]

    def become(rank: int) -> None:
        for state in states[:2]:
            state._shared_state.update(num_processes=count, process_index=rank, local_process_index=rank)

    try:
        for state in states:
            state._shared_state.clear()
        PartialState(cpu=True)
        become(0)
        with patch.object(PartialState, "_reset_state"):  # every configuration resets it
            yield become
    finally:
        for state, values in zip(states, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)


class Readers:
    """In the place of `ReaderProcesses`: threads."""

    def __init__(self, count: int, threads: int, run: Callable[[Any], Any], receive: Callable[[Any], Any]):
        self._run, self._receive = run, receive
        self._threads = ThreadPoolExecutor(count)

    def submit(self, item: Any) -> Future:
        return self._threads.submit(lambda: self._receive(self._run(item)))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class DataTrainer(GRPOVideoTrainer):
    """A trainer whose rollouts have rows and media, and completions of one token that nobody sampled."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> MicroBatch:
        rollout = self._build_rollout(inputs, self.num_generations, training=True)
        one = torch.ones(len(inputs), 1, dtype=torch.long)
        names = [row["id"] for row in rollout.rows]
        return MicroBatch(completion_ids=one, completion_mask=one, row=torch.arange(len(inputs)), names=names)


@dataclass
class Rank:
    """One process of the run.

    Args: rollouts: ids of the rows of each rollout. updates: of each micro-step. asked: what was asked for ahead when each
        rollout began. decoded: how often each clip was. found: how often it was read from disk.
    """

    number: int
    trainer: DataTrainer
    rollouts: list[list[str]] = field(default_factory=list)
    updates: list[list[str]] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    decoded: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)

    def __post_init__(self):
        trainer = self.trainer
        trainer._prompt_preparer = preparer = trainer.args.prompt_preparer(trainer.processing_class)
        trainer._setup_components()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        self.loader = trainer.get_train_dataloader()
        # Memory holds nothing from one rollout to another, as with clips that are larger than it.
        preparer.loader.cache_bytes, read, read_ahead = 0, preparer.loader.read, preparer.read_ahead

        def reading(request, threads):
            medium, was_decoded = read(request, threads)
            (self.decoded if was_decoded else self.found)[str(request.source)] += 1
            return medium, was_decoded

        def asking(rows):
            self.asked.append([row["id"] for row in rows])
            read_ahead(rows)

        preparer.loader.read, preparer.read_ahead = reading, asking

    def begin(self, epoch: int) -> int:
        """Begin an epoch, as transformers' loop does; returns its steps."""
        self.loader.set_epoch(epoch)
        self.batches = iter(self.loader)
        return len(self.loader) // self.trainer.args.gradient_accumulation_steps

    def fetch(self) -> None:
        """Take the rows of an optimisation step."""
        count = self.trainer.args.gradient_accumulation_steps
        self.step, _ = self.trainer.get_batch_samples(self.batches, count, self.trainer.accelerator.device)

    def train(self) -> None:
        """Make the rollout of the step, if one begins, and its micro-batches."""
        trainer = self.trainer
        for batch in self.step:
            if trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0:
                self.rollouts.append([row["id"] for row in batch])
            self.updates.append(trainer._prepare_inputs(batch)["names"])
            trainer._step += 1


def simulate(
    rows: Sequence[dict], folder: Path, *, nodes: int, per_node: int, epochs: int = 1, cache: bool = True, **config: Any
) -> list[Rank]:
    """Run the data of some epochs, and return the ranks: those of the first node, of the second, ...

    Args: rows: with an `id`. folder: for the caches, one of each node. config: of the trainer.
    Errors: TimeoutError if a step takes too long, as where two ranks wait for each other.
    """
    count = nodes * per_node
    with processes(count) as become, patch.object(media_loader, "ReaderProcesses", Readers):
        options = GRPOVideoConfig(str(folder / "run"), **{**SETTINGS, **config})
        trainer = DataTrainer("tiny", _no_reward, options, Dataset.from_list(list(rows)))
        trainer.model.train()
        ranks = []
        for number in range(count):
            become(number)
            own = copy.copy(trainer)
            own.args, own.callback_handler = copy.copy(options), copy.copy(trainer.callback_handler)
            own.callback_handler.callbacks = []
            own.args.media_cache_dir = str(folder / f"node{number // per_node}") if cache else None
            ranks.append(Rank(number, own))
        with ThreadPoolExecutor(count) as pool:
            for epoch in range(epochs):
                for rank in ranks:
                    become(rank.number)
                    steps = rank.begin(epoch)
                for _ in range(steps):
                    for rank in ranks:
                        become(rank.number)
                        rank.fetch()
                    list(pool.map(Rank.train, ranks, timeout=PATIENCE))
        for rank in ranks:
            rank.trainer._build_rollout.close()
    return ranks


def decoded_in_nodes(ranks: Sequence[Rank], per_node: int) -> list[Counter]:
    """How often each clip was decoded in each node."""
    starts = range(0, len(ranks), per_node)
    return [sum((rank.decoded for rank in ranks[start : start + per_node]), Counter()) for start in starts]


def write_clip(path: Path, seed: int) -> str:
    """Write a clip of 16 frames of 56 x 56 pixels; returns its path."""
    colours = np.random.default_rng(seed).integers(0, 256, (16, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for colour in colours:
            frame = np.full((56, 56, 3), colour)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def questions(folder: Path, count: int, clips: int) -> list[dict]:
    """Rows with questions on some clips, equally many on each."""
    paths = [write_clip(folder / f"{number}.mp4", number) for number in range(clips)]
    prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which colour?"}]}]
    return [{"id": str(row), "prompt": prompt, "videos": [paths[row % clips]]} for row in range(count)]


def _no_reward(completions: list, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def figures(folder: Path, nodes: int, per_node: int, clips: int, epochs: int) -> dict[str, tuple[int, int]]:
    """Clips that were decoded in all, and how often one was at most by ranks that share a folder or a node, by setting."""
    count, found = nodes * per_node, {}
    rows = questions(folder, 4 * count, clips)  # two rollouts of two prompts a rank
    for name, folders, config in [
        ("no media_cache_dir", nodes, {"cache": False}),
        ("a folder on each node", nodes, {}),
        ("the same, media_prefetch 1", nodes, {"media_prefetch": 1}),
        ("one folder for all nodes", 1, {}),
    ]:
        ranks = simulate(
            rows, folder / name.replace(" ", "_"), nodes=folders, per_node=count // folders, epochs=epochs, **config
        )
        decoded = decoded_in_nodes(ranks, count // folders)
        found[name] = sum(of_one.total() for of_one in decoded), max(max(of_one.values()) for of_one in decoded)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"nodes": 8, "per_node": 8, "clips": 64, "epochs": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = figures(Path(folder), **vars(options))
    count = options.nodes * options.per_node
    print(f"{count} ranks on {options.nodes} nodes, {4 * count * options.epochs:,} prompts on {options.clips} clips")
    for name, (total, most) in found.items():
        print(
            f"{name:>28}: {total:>5} clips decoded, one at most {most} times in a {'run' if 'all' in name else 'node'}"
        )


if __name__ == "__main__":
    main()
