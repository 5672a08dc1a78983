"""An error in one process stops all processes, or all of them skip the step; none hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    """Results of each of two processes, by scenario. A hang is a failure: it ends in a timeout."""
    folder = tmp_path_factory.mktemp("faulty")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.callbacks.nonfinite.faulty_processes", str(folder)],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_a_loss_on_one_process_stops_both(seen):
    first, last = (of_one["loss, error"] for of_one in seen)
    for of_one in (first, last):
        assert of_one["error"].startswith("NonFiniteError: step 1: the loss is not finite on process(es) 1 of 2")
        assert of_one["step"] == 1
    assert "advantages (1 of" in last["error"]
    assert "advantages" not in first["error"]
    whole = [f"process-1/micro-batch-0/{name}" for name in ("facts.json", "inputs.json", "tensors.safetensors")]
    for of_one in (first, last):  # as it was when each process raised its error
        assert set(whole) <= set(of_one["dumped"])
        assert "weights/model.safetensors" in of_one["dumped"]


@pytest.mark.slow
def test_a_disk_that_refuses_one_process_is_in_the_error_of_both(seen):
    for of_one in (of_one["loss, error, full disk"] for of_one in seen):
        assert ". process 1: the dump could not be written: no room; on_nonfinite='skip'" in of_one["error"]


@pytest.mark.slow
def test_a_loss_on_one_process_is_left_out_by_both(seen):
    first, last = (of_one["loss, skip"] for of_one in seen)
    assert first["error"] is last["error"] is None
    assert first["sums"] == last["sums"]
    before, at, after = first["sums"]
    assert before != at
    assert at == after
    assert first["skipped"] == last["skipped"] == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["reward raises", "async reward raises"])
def test_a_reward_that_raises_on_one_process_stops_both(seen, scenario):
    first, last = (of_one[scenario] for of_one in seen)
    assert "A reward function failed on process(es) 1, and this process stops with them" in first["error"]
    for of_one in (first, last):
        assert "raised LookupError: no judge here (for completion 0, sample" in of_one["error"]
    assert first["step"] == last["step"] == 0


@pytest.mark.slow
def test_a_reward_that_hangs_on_one_process_stops_both(seen):
    first, last = (of_one["reward hangs"] for of_one in seen)
    assert "A reward function failed on process(es) 1" in first["error"]
    assert "'hangs' did not return within 5 s" in last["error"]


@pytest.mark.slow
def test_a_reward_that_is_nan_on_one_process_stops_both_or_is_left_out(seen):
    first, last = (of_one["reward nan, error"] for of_one in seen)
    assert "A reward function failed on process(es) 1" in first["error"]
    assert "'nan' returned nan for completion 0 (sample" in last["error"]
    first, last = (of_one["reward nan, skip"] for of_one in seen)
    assert first["error"] is last["error"] is None
    assert first["sums"] == last["sums"]
    assert first["skipped"] == last["skipped"] == [[0.0] * 3, [1.0] * 3]
