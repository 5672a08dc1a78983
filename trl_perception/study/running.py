"""Runs cells in processes of their own, several at a time."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from .cells import LOG, Cell

WORKER = f"{__package__}.worker"
POLL_SECONDS = 0.5
TAIL = 15  # lines of a failed cell's log that are shown
ACROSS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Job:
    """A cell that runs: its lock, the phases of each process still to come, and the process of the present ones."""

    cell: Cell
    lock: int
    phases: list[tuple[str, ...]]
    process: subprocess.Popen | None = None


def run_cells(cells: Iterable[Cell], *, workers: int, threads: int, devices: Sequence[str] = ()) -> dict[str, str]:
    """Run the cells that are not complete, with a progress bar and an estimate of the time left.

    A cell that another process runs is left for later. A cell that fails does not stop the others.

    Args:
        workers: cells at a time. threads: of each. devices: one for each worker in turn; see [`accelerators`].
    Returns: {name of a cell that failed: the tail of its log}.
    """
    cells = list(cells)
    pending = deque(cell for cell in cells if not cell.is_complete)
    free, running, failed = list(range(workers))[::-1], {}, {}

    def done() -> float:
        return len(cells) - len(pending) - sum(1 - job.cell.progress for job in running.values())

    shown = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} [{elapsed}, {remaining} left]"
    bar = tqdm(total=len(cells), initial=done(), desc="cells", smoothing=0, bar_format=shown)
    try:
        while pending or running:
            for _ in range(len(pending)):
                if not free:
                    break
                cell = pending.popleft()
                if (lock := cell.claim()) is None:
                    pending.append(cell)
                elif cell.is_complete:  # by another process in the meantime
                    os.close(lock)
                else:
                    # The memory of a device is free only once the process that trained has ended.
                    apart = [(phase,) for phase in cell.phases] if devices else [cell.phases]
                    running[free.pop()] = _Job(cell, lock, apart)
            for slot, job in list(running.items()):
                code = 0 if job.process is None else job.process.poll()
                if code == 0 and job.phases:
                    device = devices[slot % len(devices)] if devices else None
                    job.process = _start(job.cell, job.phases.pop(0), job.lock, threads, device)
                elif code is not None:
                    if code:
                        failed[job.cell.name] = tail = _tail(job.cell)
                        tqdm.write(f"failed: {job.cell.name} ({job.cell.folder / LOG}):\n{tail}", file=sys.stderr)
                    os.close(job.lock)
                    free.append(slot)
                    del running[slot]
            bar.update(done() - bar.n)
            if pending or running:
                time.sleep(POLL_SECONDS)
    finally:
        bar.close()
        for job in running.values():
            if job.process is not None:
                job.process.terminate()
        for job in running.values():
            if job.process is not None:
                job.process.wait()
            os.close(job.lock)
    return failed


def accelerators() -> list[str]:
    """Return the numbers of the GPUs that are visible, as CUDA_VISIBLE_DEVICES has them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [number for number in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if number]
    import torch  # a slow import

    return [str(number) for number in range(torch.cuda.device_count())]


def _start(cell: Cell, phases: Sequence[str], lock: int, threads: int, device: str | None) -> subprocess.Popen:
    environment = {**os.environ, **dict.fromkeys(ACROSS, str(threads))}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    command = [sys.executable, "-m", WORKER, str(cell.folder), *phases]
    with (cell.folder / LOG).open("ab") as log:
        log.write(f"-- {' '.join(phases)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[lock]
        )


def _tail(cell: Cell) -> str:
    """Return the last lines of a log; of a progress bar only what it showed last."""
    lines = [line.rsplit("\r", 1)[-1] for line in (cell.folder / LOG).read_bytes().decode(errors="replace").split("\n")]
    return "\n".join([line for line in lines if line.strip()][-TAIL:])
