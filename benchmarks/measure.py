"""Measure time and memory of a code path, to compare two paths in one run."""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # malloc.h
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now(device: str) -> float:
    """Seconds of processor time on the CPU, which other jobs do not affect; wall time on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: str) -> float:
    start = now(device)
    work()
    return now(device) - start


def ratios(slow: Callable[[], object], fast: Callable[[], object], device: str, repeats: int) -> dict[str, float]:
    """Measure time and peak memory of two paths, alternating, after one warm-up run of each.

    Returns: `speedup` (slow / fast, medians) with `slow_s`, `fast_s`, and `memory` (fast / slow) with `slow_mb`, `fast_mb`.
    """
    memory = {"slow": peak_memory(slow, device), "fast": peak_memory(fast, device)}
    times: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(repeats):
        times["slow"].append(seconds(slow, device))
        times["fast"].append(seconds(fast, device))
    slow_s, fast_s = (statistics.median(times[name]) for name in ("slow", "fast"))
    return {
        "speedup": slow_s / fast_s,
        "slow_s": slow_s,
        "fast_s": fast_s,
        "memory": memory["fast"] / max(memory["slow"], 1e-9),
        "slow_mb": memory["slow"],
        "fast_mb": memory["fast"],
    }


def peak_memory(work: Callable[[], object], device: str) -> float:
    """Peak MiB that `work` needs beyond what was allocated before it.

    On the CPU this is the kernel's high-water mark of resident memory (Linux), which is reset first; NaN elsewhere. Every
    tensor is mapped separately, so that memory freed earlier is not counted.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not CLEAR.exists():
        work()
        return float("nan")
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)
    CLEAR.write_text("5")
    before = _kilobytes("VmRSS")
    work()
    peak = _kilobytes("VmHWM")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
    return (peak - before) / 2**10


def machine(device: str) -> str:
    """Describe the machine: processor and cores, or the GPU."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}"


def _kilobytes(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])
