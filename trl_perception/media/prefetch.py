"""Reading ahead: processes that read media while the main process trains, and the rows of the rollouts to come."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, parent_process
from threading import Thread
from typing import Any

import torch
from torch import multiprocessing


class ReaderProcesses:
    """Processes that run one function on items; tensors of its results come through shared memory.

    They are started when they are needed, as new interpreters: a fork would copy the locks of torch's and the decoders' threads.
    They end with `close`, and with this process, however it ends.

    Args:
        count: of processes.
        threads: that torch uses in each.
        run: item -> result, sent to each process once.
        receive: result -> what the future holds, called in a thread of this process. It copies the tensors: one in shared
            memory holds an open file.
    """

    def __init__(self, count: int, threads: int, run: Callable[[Any], Any], receive: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        end, self._end = context.Pipe(duplex=False)
        self._processes = ProcessPoolExecutor(count, context, _begin, (end, threads, run))
        # Each waits for one process, so that no more than `count` results are on their way.
        self._threads = ThreadPoolExecutor(count, "media")
        self._receive = receive

    def submit(self, item: Any) -> Future:
        """Run the function on an item, after those submitted before.

        Errors of the future: those of the function; RuntimeError if a process died.
        """
        return self._threads.submit(self._result, item)

    def close(self) -> None:
        """End the processes, and with them what they are running."""
        self._end.send_bytes(b"end")  # never received, so that every process finds it
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._processes.shutdown(cancel_futures=True)
        self._threads.shutdown()
        self._end.close()

    def _result(self, item: Any) -> Any:
        try:
            return self._receive(self._processes.submit(_call, item).result())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process that reads media ahead died; what it printed says why, and it prints nothing where memory or /dev/shm "
                "is full. Give it more, lower media_workers or media_prefetch (0 starts no processes), or, if it began to "
                "run your script again, put what the script does under `if __name__ == '__main__':`."
            ) from error


_run: Callable[[Any], Any]  # of this process, if it is one of `ReaderProcesses`


def _begin(end: connection.Connection, threads: int, run: Callable[[Any], Any]) -> None:
    global _run
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which ends this one
    torch.set_num_threads(threads)
    Thread(target=_exit_at, args=(end,), daemon=True).start()
    _run = run


def _exit_at(end: connection.Connection) -> None:
    connection.wait([end, parent_process().sentinel])
    os._exit(0)


def _call(item: Any) -> Any:
    return _run(item)


class RowsAhead:
    """Passes on the batches of a data loader, and knows those of the rollouts to come.

    TRL's loader yields the rows of a rollout once for each of its micro-steps; the first of these batches is used.

    Args:
        rollouts: how many are known ahead; with 0 nothing is taken from the loader before its turn.
        micro_steps: of a rollout.
    """

    def __init__(self, rollouts: int, micro_steps: int):
        self.rollouts, self.micro_steps = rollouts, micro_steps
        self._loader: Iterator | None = None
        self._batches: Iterator = iter(())
        self._known: deque[Sequence] = deque()

    def over(self, loader: Iterator, micro_step: int) -> Iterator:
        """Return the batches of a loader's iterator, whose next one belongs to `micro_step` of the run."""
        if not self.rollouts:
            return loader
        if loader is not self._loader:
            self._loader, self._batches = loader, self._ahead(loader, micro_step)
        return self._batches

    def after(self, rows: Sequence) -> list[Sequence] | None:
        """Return the batches of the next rollouts, or None if `rows` is not a batch with which one begins."""
        place = next((place for place, known in enumerate(self._known) if known is rows), None)
        if place is None:
            return None
        for _ in range(place + 1):
            self._known.popleft()
        return list(islice(self._known, self.rollouts))

    def _ahead(self, loader: Iterator, micro_step: int) -> Iterator:
        self._known.clear()
        held: deque[Sequence] = deque()
        try:
            for number, batch in enumerate(loader, micro_step):
                held.append(batch)
                if number % self.micro_steps == 0:
                    self._known.append(batch)
                if len(held) > self.rollouts * self.micro_steps:
                    yield held.popleft()
        except Exception:  # of rows that cannot be loaded: those before them come first
            yield from held
            raise
        yield from held
