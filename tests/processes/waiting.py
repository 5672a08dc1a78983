"""A process that does not join the collective of the others."""

import time
from datetime import timedelta
from pathlib import Path

import torch


def waited(folder: Path, job: dict, run: dict) -> dict:
    torch.distributed.init_process_group("gloo")
    others = torch.distributed.new_group(timeout=timedelta(seconds=job["patience"]))
    rank = torch.distributed.get_rank()
    (folder / f"met-{rank}").write_text("")
    if rank == 1:
        sleep_instead(run["seconds"])
    torch.distributed.barrier(group=others)
    return {}


def sleep_instead(seconds: float) -> None:
    time.sleep(seconds)
