"""Several processes of one program, and a watchdog: a hang is a failure that shows where each process was."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.helpers import free_port

ROOT = Path(__file__).parents[2]


class LaunchError(AssertionError):
    """Processes that failed or hung, with their output and the stacks of those still running."""


def launch(
    job: dict,
    folder: Path,
    processes: int,
    *,
    seconds: float,
    config: dict | None = None,
    patience: int = 180,
    after: str | None = None,
) -> list[dict]:
    """Run a job in processes of `tests.processes.worker` and return each one's result, by rank.

    Args:
        job: what to do, see the worker. folder: an empty folder for its files.
        seconds: time limit of the whole job; with `after`, how long it may take after each process has written the file
            AFTER-RANK. patience: seconds that a process waits for the others in one collective.
        config: an accelerate configuration; then `accelerate launch` starts the processes, else `torchrun` does.
    Errors: LaunchError, with the stacks of all processes if they did not end by themselves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps({**job, "patience": patience}))
    work = ["-m", "tests.processes.worker", str(folder)]
    port = str(free_port())
    if config is None:
        starter = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    else:
        path = folder / "accelerate.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        starter = ["accelerate.commands.launch", "--config_file", str(path), "--num_processes", str(processes)]
        starter += ["--main_process_port", port]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("w") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", *starter, *work],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while after and len(list(folder.glob(f"{after}-*"))) < processes and run.poll() is None:
                time.sleep(0.1)
            run.wait(timeout=seconds)
            ending = f"exit status {run.returncode}"
        except subprocess.TimeoutExpired:
            ending = f"still running after {seconds:g} seconds"
            _ask_for_stacks(folder)
        finally:
            _end(run.pid, folder)
            run.wait()
    if ending != "exit status 0":
        raise LaunchError(f"{processes} processes: {ending}.\n{_last_words(folder)}")
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(processes)]


def _ask_for_stacks(folder: Path) -> None:
    """The workers write their stacks on SIGUSR1 (faulthandler), even while waiting."""
    for path in folder.glob("pid-*"):
        if Path("/proc", path.read_text()).exists():
            os.kill(int(path.read_text()), signal.SIGUSR1)
    time.sleep(1)


def _end(group: int, folder: Path) -> None:
    """End all processes of the group that was started here, and the workers, which torchrun starts in sessions of their own."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for path in folder.glob("pid-*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def _last_words(folder: Path) -> str:
    words = []
    for path in sorted(folder.glob("stacks-*")):
        stacks = path.read_text().strip()
        words.append(f"--- {path.name}: {'where it stood' if stacks else 'ended by itself'}\n{stacks[-6000:]}")
    return "\n".join([*words, "--- output", (folder / "output.txt").read_text()[-6000:]])
