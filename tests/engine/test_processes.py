"""The engine in processes of its own: one each, or one that both share (tensor parallelism)."""

import pytest

from tests.engine.rollouts import exact, saved, wide
from tests.processes.launch import launch
from tests.processes.test_equality import SHARDED


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


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_alpha": 32}
OF_EXPERTS = {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
RULE = {"position_rule": "transformers"}
# Of each launch the runs: a family, its adapter and its settings.
SHARDED_RUNS = {
    "fsdp2": [
        ("qwen2_5_vl", None, {}),
        ("qwen2_5_vl", LORA, {}),
        ("qwen2_5_vl", None, {"freeze_vision_tower": True}),
        ("qwen2_5_vl", None, {"freeze_vision_tower": True, "freeze_merger": True}),
    ],
    "fsdp2, experts": [("qwen3_vl_moe", None, {}), ("qwen3_vl_moe", OF_EXPERTS, {})],
    "fsdp2, one engine": [("qwen3_vl", None, {"vllm_tensor_parallel_size": 2})],
    "zero3": [("qwen2_5_vl", None, RULE), ("qwen2_5_vl", LORA, {}), ("gemma4", None, {})],
    "zero3, experts": [("qwen3_vl_moe", None, {}), ("qwen3_vl_moe", OF_EXPERTS, {})],
}


@pytest.mark.parametrize("launched", SHARDED_RUNS)
def test_the_engine_follows_updates_of_sharded_weights(launched, tmp_path, clips, monkeypatch):
    sharding = launched.split(",")[0]
    if sharding == "zero3":
        pytest.importorskip("deepspeed")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    runs = []
    for number, (family, lora, config) in enumerate(SHARDED_RUNS[launched]):
        home = tmp_path / str(number)
        saved(wide(family), home / "model")
        run = {"kind": "engine.trained", "name": str(number), "family": family, "home": str(home), "lora": lora}
        runs.append({**run, "clips": clips, "config": config})
    for results in launch(
        {"runs": runs, "sharding": sharding}, tmp_path / "job", 2, seconds=400, config=SHARDED[sharding]
    ):
        for run in runs:
            result = results[run["name"]]
            assert result["as"] == ("DEEPSPEED" if sharding == "zero3" else "FSDP")
            assert result["held"] < 0.7
            assert result["difference"] < exact(run["family"])
