"""The engine in processes of its own: one each, or one that both share (tensor parallelism)."""

import pytest

from tests.engine.rollouts import exact, saved, wide
from tests.processes.launch import launch


@pytest.mark.parametrize(
    ("family", "processes", "tensor_parallel"),
    [("qwen2_5_vl", 2, 1), ("qwen3_vl", 2, 2), ("qwen3_5_moe", 2, 2)],
)
def test_processes_sample_what_they_train_on(
    family, processes, tensor_parallel, tmp_path, clips, pictures, monkeypatch
):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    saved(wide(family), tmp_path / "model")
    run = {
        "kind": "engine.two_rollouts",
        "name": "differences",
        "family": family,
        "home": str(tmp_path),
        "clips": clips,
        "pictures": pictures,
        "config": {"vllm_tensor_parallel_size": tensor_parallel},
    }
    for result in launch({"runs": [run]}, tmp_path / "job", processes, seconds=400):
        assert max(result["differences"]) < exact(family)
