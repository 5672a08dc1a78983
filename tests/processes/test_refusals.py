"""Settings that processes cannot keep in step are refused before training, with the setting to change."""

import re

import pytest

from tests.processes.launch import launch
from tests.processes.test_equality import ACCELERATE, SHARDED, job


def fsdp(**changes):
    return {**ACCELERATE, **SHARDED["fsdp2"], "fsdp_config": {**SHARDED["fsdp2"]["fsdp_config"], **changes}}


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
TEACHER = {"teacher_model_name_or_path": "tiny_teacher"}
REFUSED = {
    "fsdp2": [
        (("grpo", {"beta": 0.1}), {}, "fsdp_cpu_ram_efficient_loading is set.*the reference model"),
        (("attn_distill", TEACHER), {}, "fsdp_cpu_ram_efficient_loading is set.*the teacher"),
    ],
    "zero3": [
        (("grpo", {"ds3_gather_for_generation": False}), {}, "ds3_gather_for_generation is False"),
        (("grpo", {"on_bad_media": "skip"}), {"lora": LORA}, "on_bad_media is 'skip' with an adapter under ZeRO-3"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", REFUSED)
def test_what_would_hang_is_refused(kinds, tmp_path, sharding):
    config = fsdp(fsdp_cpu_ram_efficient_loading=True) if sharding == "fsdp2" else SHARDED[sharding]
    if sharding != "fsdp2":
        pytest.importorskip("deepspeed")
    runs = []
    for method, extra, message in REFUSED[sharding]:
        (run,) = job([kinds["text"], kinds["video"]], 2, {message: method})
        runs.append({**run, **extra, "kind": "runs.refused"})
    for of_process in launch({"runs": runs, "sharding": sharding}, tmp_path, 2, seconds=500, config=config):
        for message, said in of_process.items():
            assert re.search(message, said), said or "nothing was refused"
