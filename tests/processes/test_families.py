"""Several processes give what one gives for other families too, where one process has a video and the other a text."""

import pytest

from tests.families.tiny import saved
from tests.processes import runs
from tests.processes.launch import launch
from tests.processes.test_equality import DDP, SHARDED, compared, job


def fsdp2_of(*layers: str) -> dict:
    """FSDP2 with the classes of the layers that are sharded by themselves."""
    config = SHARDED["fsdp2"]
    named = {"fsdp_transformer_layer_cls_to_wrap": ",".join(layers)}
    return {**config, "fsdp_config": {**config["fsdp_config"], **named}}


# transformers names classes for Gemma that these models do not have: docs/cluster.md.
LAUNCHES = {
    "fsdp2": (SHARDED["fsdp2"], ("qwen3_vl", "internvl", "glm4v", "glm4v_moe", "smolvlm", "qwen3_5")),
    "fsdp2, Gemma 3": (fsdp2_of("Gemma3DecoderLayer", "SiglipEncoderLayer"), ("gemma3",)),
    "fsdp2, Gemma 4": (fsdp2_of("Gemma4TextDecoderLayer", "Gemma4VisionEncoderLayer"), ("gemma4",)),
    "zero3": (SHARDED["zero3"], ("qwen3_vl", "internvl", "glm4v", "smolvlm", "qwen3_5", "gemma3", "gemma4")),
    "ddp": (DDP, ("qwen3_5", "glm4v")),
}


@pytest.mark.slow
@pytest.mark.parametrize("launched", LAUNCHES)
def test_two_processes_give_what_one_gives(kinds, tmp_path, launched):
    """The first process has the video, then the picture; the other the text, then all kinds in one prompt."""
    if launched == "zero3":
        pytest.importorskip("deepspeed")
    config, names = LAUNCHES[launched]
    models = {name: str(saved(name, tmp_path / name)) for name in names}
    rows = [kinds[kind] for kind in ("video", "text", "image", "both")]

    def work(processes: int) -> list[dict]:
        # Adam turns rounding in a gradient near 0 into a step of the learning rate; Gemma 4 shows it with 1e-4.
        methods = dict.fromkeys(names, ("grpo", {"learning_rate": 1e-5, "router_aux_loss_coef": 0.0}))
        return [{**run, "model": models[run["name"]]} for run in job(rows, processes, methods)]

    single = {run["name"]: runs.trained(tmp_path / "1", {}, run) for run in work(1)}
    sharding = {"sharding": "fsdp2"} if "fsdp2" in launched else {}
    together = launch({"runs": work(2), **sharding}, tmp_path / "2", 2, seconds=500, config=config, patience=60)
    compared({name: result["logged"] for name, result in single.items()}, together)
    for name in names:
        held, weights = ([of_process[name][key] for of_process in together] for key in ("held", "weights"))
        assert held == [1, 1] if launched == "ddp" else all(0.4 < share < 0.6 for share in held)
        whole = weights[0] if launched == "ddp" else sum(weights)
        assert whole == pytest.approx(single[name]["weights"], rel=1e-6)
