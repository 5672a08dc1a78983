"""The engine in two processes: one each, or one that both share (tensor parallelism)."""

import pytest

from tests.engine.rollouts import EXACT, saved, wide
from tests.processes.launch import launch


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_processes_sample_what_they_train_on(tensor_parallel, tmp_path, clips, pictures, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    saved(wide("qwen2_5_vl"), tmp_path / "model")
    run = {
        "kind": "engine.two_steps",
        "name": "engine",
        "home": str(tmp_path),
        "tensor_parallel": tensor_parallel,
        "clips": clips,
        "pictures": pictures,
        "config": {},
    }
    results = launch({"runs": [run]}, tmp_path / "job", 2, seconds=400)
    for of_rank in results:
        differences = of_rank["engine"]["differences"]
        assert len(differences) == 2
        assert max(differences) < EXACT
