"""One process of several: performs the runs of a job in order and writes their logs.

`python -m tests.processes.worker FOLDER`, started by `tests.processes.launch`.
"""

import faulthandler
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def watched(folder: Path, rank: int) -> None:
    """Stacks of all threads go into a file when the watchdog asks, the launcher ends this process, or it crashes."""
    stacks = (folder / f"stacks-{rank}").open("w")
    faulthandler.enable(file=stacks)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    faulthandler.register(signal.SIGTERM, file=stacks, all_threads=True, chain=True)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))


def main(folder: Path) -> None:
    rank = int(os.environ.get("RANK", "0"))
    watched(folder, rank)
    job = json.loads((folder / "job.json").read_text())
    results = {}
    for run in job["runs"]:
        module, name = run["kind"].rsplit(".", 1)  # seconds of imports, which the watchdog covers as well
        results[run["name"]] = getattr(import_module(f"tests.processes.{module}"), name)(folder, job, run)
    (folder / f"result-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
