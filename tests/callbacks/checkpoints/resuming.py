"""Runs that are killed: `python -m tests.callbacks.checkpoints.resuming JOBS.json` runs each job in a separate process.

A job is {"trainer", "rows", "config"} and, where they apply, {"kill": {"at": MOMENT, "count": n}}: process 0 ends itself with
SIGKILL when the moment occurs for the nth time; {"resume": True}; {"log": PATH}: where process 0 writes what was logged; {"port"}: of a
run of several processes. The jobs' processes are forked, so that the libraries are imported once. Prints one line a job: the
signal that ended it, or its exit status.
"""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from datasets import Dataset

from tests.helpers import letter_variety
from trl_perception.callbacks.checkpoints import saving
from trl_perception.trainers import TRAINERS

ROOT = Path(__file__).parents[3]
PLAIN = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 8,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "steps",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}
# Checkpoints after 2 and 4 steps, in the middle of rollouts of 3.
SAVED = {
    "num_iterations": 3,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_steps": 5,
    "save_steps": 2,
}
UNCOMPARED = ("step_time", "runtime", "train_loss", "total_flos", "samples_per_second", "steps_per_second")


def build(trainer, rows, config, **extra):
    """The trainer of a job."""
    cls = TRAINERS[trainer]
    args = cls.config_class(**{**PLAIN, **config})
    rows, some = (Dataset.from_list(rows), Dataset.from_list(rows[:2])) if isinstance(rows, list) else (rows, rows)
    return cls("tiny", letter_variety, args, rows, eval_dataset=some, **extra)


def resumed(folder, rows, checkpoint=True, **config):
    trainer = build("grpo", rows, {**SAVED, "save_strategy": "no", "output_dir": str(folder), **config})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def log_of(trainer):
    """The log of each step, without times and the summary of a `train()` call."""
    history = trainer.state.log_history
    return [{k: v for k, v in entry.items() if not k.endswith(UNCOMPARED)} for entry in history]


def started(command, seconds=500):
    """Run jobs to completion, offline and with one thread per process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(trainer, at, count):
    """Make this process die when `at` occurs for the `count`th time."""
    left = [count]

    def counted(then=None):
        left[0] -= 1
        if left[0] == 0:
            (then or die)()

    def before(owner, name):
        plain = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (counted(), plain(*args, **kwargs))[1])

    def half_a_file(plain):
        def save(content, path, **kwargs):
            whole = io.BytesIO()
            plain(content, whole)

            def half():
                Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
                die()

            counted(half)
            Path(path).write_bytes(whole.getvalue())

        return save

    if at == "update":  # within the step, before its optimizer
        before(trainer, "training_step")
    elif at == "weights written":
        before(trainer, "_save_optimizer_and_scheduler")
    elif at == "half a file":
        torch.save = half_a_file(torch.save)
    elif at == "all but the name":
        before(saving, "finish")
    elif at == "named":
        before(saving, "rotate_checkpoints")
    else:
        raise ValueError(at)


def run(job):
    if "port" in job:  # each job has its own rendezvous port
        os.environ.update(MASTER_PORT=str(job["port"]), TORCHELASTIC_USE_AGENT_STORE="False")
    trainer = build(job["trainer"], job["rows"], job["config"])
    if "kill" in job and trainer.args.process_index == 0:
        arm(trainer, **job["kill"])
    trainer.train(resume_from_checkpoint=job.get("resume"))
    if "log" in job and trainer.args.process_index == 0:
        Path(job["log"]).write_text(json.dumps(log_of(trainer)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        child = os.fork()
        if child == 0:
            try:
                run(job)
            finally:  # print a pending traceback first
                sys.stderr.flush()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        os.write(sys.stdout.fileno(), f"ended {code}\n".encode())  # one write: lines of two processes stay whole
