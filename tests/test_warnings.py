"""A default run gives no warning that this package causes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers import message

ROOT = Path(__file__).parent.parent
# TRL's own calls, once a process: its `disable_gradient_checkpointing` uses three names that transformers has deprecated.
OF_TRL = (
    r".*FutureWarning: `(is_gradient_checkpointing|gradient_checkpointing_(en|dis)able)` is deprecated.*\n"
    r".*warnings\.warn\(\n"
)


def test_a_run_of_a_recipe_gives_no_warning(clips, tmp_path):
    rows = [
        {"prompt": message("Colour of scene 1?", "video"), "videos": [clip], "solution": "red"} for clip in clips[:2]
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "problem_type": "free-form"}) + "\n" for row in rows)
    )
    options = {
        "config": ROOT / "recipes" / "appo" / "tiny.yaml",
        "dataset_name": tmp_path / "rows.jsonl",
        "output_dir": tmp_path / "run",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "gradient_checkpointing": "true",
        "max_completion_length": 8,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    run = subprocess.run(
        [sys.executable, "-W", "default", "-m", "trl_perception.train", *words],
        cwd=ROOT,
        env={**environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    said = re.sub(OF_TRL, "", run.stdout + run.stderr)
    # Warnings of Python, of our dependencies' loggers, and of `datasets` where a function has no fingerprint.
    found = [line for line in said.splitlines() if re.search(r"Warning:|deprecated|hashed|\[transformers\]", line)]
    assert found == []
