"""Monitor a thousand steps of every method: `python -m benchmarks.soak [--json FILE] [--only METHOD]`.

Each method runs its tiny recipe in a separate process, with small rollouts (two groups a step), checkpoints, rollout
records and evaluations. From step 200 on the process must not grow: resident memory by less than 2 %, open files and
threads not at all. The command fails if any of them grows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import TrainerCallback

from benchmarks.measure import machine
from benchmarks.performance_table import with_table
from trl_perception.recipe import shipped_recipes
from trl_perception.train import build, parse

METHODS = tuple(name.removesuffix("/tiny") for name in shipped_recipes() if name.endswith("/tiny"))
SETTLED = 200
GROWTH = 0.02
WINDOW = 50  # steps in the median at each end, as the length of a rollout varies
OPTIONS = {
    "per_device_train_batch_size": 16,
    "synthetic": '{"size": 48, "seed": 1, "medium": "mixed"}',
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "report_every": 50,
    "learning_rate": 5e-5,  # at the recipe's own rate groups end without spread, so no credit
    "eval_strategy": "steps",
    "eval_steps": 250,
    "per_device_eval_batch_size": 16,
    "disable_tqdm": "true",
    "use_cpu": "true",
    "log_level": "error",
}
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


class Watch(TrainerCallback):
    """Records the size of this process after every step."""

    def __init__(self):
        self.rss, self.files, self.threads, self.rewards = [], [], [], []

    def on_step_end(self, args, state, control, **kwargs):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rss.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(len(os.listdir("/proc/self/task")))  # FFmpeg's and torch's too

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            self.rewards.append(logs["reward"])


def soak(method: str, steps: int) -> dict:
    """Train and report the growth of the process: MiB of memory, open files and threads at step 200 and at the end."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"config": f"{method}/tiny", "output_dir": folder, "max_steps": steps, **OPTIONS}
        trainer = build(*parse([word for key, value in settings.items() for word in (f"--{key}", str(value))]))
        trainer.eval_dataset = trainer.eval_dataset.select(range(16))
        watch = Watch()
        trainer.add_callback(watch)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    early, late = watch.rss[SETTLED : SETTLED + WINDOW], watch.rss[-WINDOW:]
    return {
        "steps": len(watch.rss),
        "minutes": seconds / 60,
        "rss_mb": [statistics.median(early), statistics.median(late)],
        "growth": statistics.median(late) / statistics.median(early) - 1,
        "files": [watch.files[SETTLED], max(watch.files[SETTLED:])],
        "threads": [watch.threads[SETTLED], max(watch.threads[SETTLED:])],
        "reward": [statistics.mean(watch.rewards[:WINDOW]), statistics.mean(watch.rewards[-WINDOW:])],
        "rss_every_50": [round(rss, 1) for rss in watch.rss[::WINDOW]],
    }


def holds(found: dict) -> bool:
    """Whether a run did not grow."""
    return found["growth"] < GROWTH and all(first == last for first, last in (found["files"], found["threads"]))


def as_markdown(result: dict) -> str:
    """A row a method."""
    lines = [
        result["machine"],
        "",
        "| method | steps | memory at 200, MiB | at the end | growth | files | threads | minutes |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for method, found in result["methods"].items():
        (early, late), (files, most_files), (threads, most_threads) = (
            found[key] for key in ("rss_mb", "files", "threads")
        )
        lines.append(
            f"| {method} | {found['steps']:,} | {early:.0f} | {late:.0f} | {found['growth']:+.2%} | "
            f"{files} to {most_files} | {threads} to {most_threads} | {found['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2, help="methods at a time")
    parser.add_argument("--only", choices=METHODS, help="one method, in this process")
    parser.add_argument("--json", type=Path, help="where the figures go, and from there into docs/reliability.md")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(soak(options.only, options.steps)))
        return
    result = {"machine": machine("cpu"), "command": "make soak", "methods": {}}

    def in_a_process(method: str) -> dict:
        command = [sys.executable, "-m", "benchmarks.soak", "--only", method, "--steps", str(options.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(options.jobs) as pool:
        for method, found in zip(METHODS, pool.map(in_a_process, METHODS), strict=True):
            result["methods"][method] = found
            print(f"{method}: {found['growth']:+.2%} in {found['minutes']:.1f} minutes", flush=True)
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), as_markdown(result)))
    grown = [method for method, found in result["methods"].items() if not holds(found)]
    if grown:
        raise SystemExit(f"{', '.join(grown)}: the process grew after step {SETTLED}.")


if __name__ == "__main__":
    main()
