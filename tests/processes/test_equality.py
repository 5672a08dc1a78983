"""Several processes give the same results as one at the same batch, for every trainer and every kind of parallelism."""

from pathlib import Path

import pytest

from tests.helpers import every_method
from tests.processes import runs
from tests.processes.launch import LaunchError, launch

OPTIONS = every_method(
    appo={"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"},
    ral={"num_iterations": 2},
    attn_distill={"teacher_model_name_or_path": "tiny_teacher", "grpo_weight": 1.0},
)
METHODS = {name: (name, options) for name, options in OPTIONS.items()}
METHODS["vppo"] = ("vppo", {"statistics": "global", "mask": "tube"})
MORE = {
    **METHODS,
    "attn_distill": ("attn_distill", {**METHODS["attn_distill"][1], "gkd_weight": 0.5}),
    "ral, reference": ("ral", {"num_iterations": 2, "attn_reference": "ref", "attn_keys": "visual", "beta": 0.01}),
    "pgpo, exact": ("pgpo", {"dependency": "kl", "num_iterations": 2}),
}
MORE["ktr, zeroed under a frozen tower"] = (
    "ktr",
    {"visual_view": "zeroed", "gradient_checkpointing": True, "freeze_vision_tower": True},
)
MORE["papo, gradient of masked media"] = ("papo", {"masked_gradient": True, "num_iterations": 2})
MORE["vppo, groups"] = ("vppo", {"num_iterations": 2})
MORE["ral, checkpointed"] = ("ral", {**METHODS["ral"][1], "gradient_checkpointing": True, "group_forward": "off"})
# TRL's averages over micro-batches, regardless of the number of tokens in each, and lengths of repeated rows.
NOT_COMPARED = ("entropy", "clip_ratio", "eval_completions")
SKIP = {"on_bad_media": "skip"}
LEFT_OUT = {
    "vppo, one left out": ("vppo", {"statistics": "global", **SKIP}),
    "t_grpo, one left out": ("t_grpo", SKIP),
    "ktr, one left out": ("ktr", SKIP),
    "ral, one left out": ("ral", {**METHODS["ral"][1], **SKIP}),
    "attn_distill, one left out": ("attn_distill", {**MORE["attn_distill"][1], **SKIP}),
}
# Three prompts of two completions: in two processes with four rows each, two rows are left over.
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2}

ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "mixed_precision": "no", "num_machines": 1}
DDP = {**ACCELERATE, "distributed_type": "MULTI_GPU", "use_cpu": True}  # of "MULTI_CPU" one process is started
SHARDED = {
    "fsdp2": {
        **ACCELERATE,
        "distributed_type": "FSDP",
        "use_cpu": True,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        },
    },
    **{
        f"zero{stage}": {
            **ACCELERATE,
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {
                "zero_stage": stage,
                "offload_optimizer_device": "none",
                "offload_param_device": "none",
                "zero3_init_flag": stage == 3,
            },
        }
        for stage in (2, 3)
    },
}


def job(rows, processes, methods, **config):
    """A rollout of four groups, one a micro-batch: one process accumulates the micro-batches that several share."""
    accumulation = {"gradient_accumulation_steps": 4 // processes}
    return [
        {
            "kind": "runs.trained",
            "name": name,
            "trainer": trainer,
            "rows": rows,
            "config": {"max_steps": 2, **accumulation, **options, **config},
        }
        for name, (trainer, options) in methods.items()
    ]


def jobs(kinds, processes, methods, left_out=None):
    """All methods on prompts of all kinds, the first of them with an evaluation, and some with a prompt left out."""
    whole = job([kinds[name] for name in ("video", "text", "flat", "both")], processes, methods)
    whole[0]["eval_rows"] = [kinds[name] for name in ("video", "text", "both")]
    whole[0]["config"].update(EVALUATED, per_device_eval_batch_size=max(8 // processes, 2))
    return whole + job([kinds[name] for name in ("video", "broken", "text", "both")], processes, left_out or {})


def alone(kinds, folder: Path, methods, left_out=None) -> dict[str, list[dict]]:
    """The log of one process."""
    return {run["name"]: runs.trained(folder, {}, run)["logged"] for run in jobs(kinds, 1, methods, left_out)}


def difference(one: list[dict], other: list[dict]) -> list[str]:
    """Describe where two logs differ by more than 1e-4."""
    found = [] if len(one) == len(other) else [f"{len(one)} and {len(other)} entries"]
    for step, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        for key in sorted(mine.keys() | theirs.keys()):
            if any(part in key for part in NOT_COMPARED):
                continue
            a, b = mine.get(key), theirs.get(key)
            if a is None or b is None or a != pytest.approx(b, rel=1e-4, abs=1e-4, nan_ok=True):
                found.append(f"step {step} {key}: {a} and {b}")
    return found


def compared(single: dict[str, list[dict]], together: list[dict]) -> None:
    """Losses, gradient norms, rewards and the methods' own metrics, step by step."""
    differences = {name: difference(single[name], run["logged"]) for name, run in together[0].items()}
    assert not any(differences.values()), "\n".join(
        f"{n}: {line}" for n, lines in differences.items() for line in lines
    )
    for name in together[0]:
        steps = [entry for entry in single[name] if "grad_norm" in entry]
        assert len(steps) == 2
        assert all(entry["grad_norm"] > 1e-3 for entry in steps)


@pytest.fixture(scope="session")
def one_process(kinds, tmp_path_factory):
    return alone(kinds, tmp_path_factory.mktemp("alone"), MORE, LEFT_OUT)


QUICK = ("grpo", "ktr", "attn_distill", "t_grpo", "vppo")


@pytest.mark.parametrize(
    "names", [QUICK, pytest.param([name for name in METHODS if name not in QUICK], marks=pytest.mark.slow)], ids=str
)
def test_two_processes_give_what_one_gives(kinds, tmp_path, names):
    methods = {name: METHODS[name] for name in names}
    single = alone(kinds, tmp_path / "1", methods)
    together = launch({"runs": jobs(kinds, 2, methods)}, tmp_path / "2", 2, seconds=500, config=DDP)
    compared(single, together)
    assert {result["as"] for result in together[0].values()} == {"MULTI_CPU"}
    evaluated = [entry for entry in together[0][names[0]]["logged"] if "eval_reward" in entry]
    assert len(evaluated) == 2


@pytest.mark.slow
def test_four_processes_give_what_one_gives(kinds, one_process, tmp_path):
    methods = {name: MORE[name] for name in ("grpo", "ktr", "ral", "attn_distill", "t_grpo", "vppo")}
    compared(one_process, launch({"runs": jobs(kinds, 4, methods)}, tmp_path, 4, seconds=500, config=DDP))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDED)
def test_sharded_processes_give_what_one_gives(kinds, one_process, tmp_path, sharding):
    """Each process holds half of the parameters (ZeRO-2: all) and runs other forwards than the other process."""
    if sharding != "fsdp2":
        pytest.importorskip("deepspeed")
    parts = (
        ({name: MORE[name] for name in METHODS}, {}) if sharding == "zero2" else (MORE, LEFT_OUT)
    )  # ZeRO-2 shards only gradients
    work = {"runs": jobs(kinds, 2, *parts), "sharding": sharding}
    together = launch(work, tmp_path, 2, seconds=500, config=SHARDED[sharding])
    assert {result["as"] for result in together[0].values()} == {"FSDP" if sharding == "fsdp2" else "DEEPSPEED"}
    held = [result["held"] for of_one in together for result in of_one.values()]
    assert all(share == 1 if sharding == "zero2" else 0.4 < share < 0.6 for share in held)
    compared(one_process, together)


@pytest.mark.slow
def test_scheduled_collectives_prevent_a_hang(kinds, tmp_path):
    """A text and a video at once; Video-KTR runs two more forwards for the video.

    Without scheduled collectives one process gathers parameters while the other is elsewhere. The outcome varies:
    both hang, or gloo ends a process that received more data than it expected.
    """
    (run,) = job([kinds["video"], kinds["text"]], 2, {"ktr": METHODS["ktr"]}, gradient_accumulation_steps=1)
    work = {"runs": [run], "sharding": "fsdp2"}
    assert len(launch(work, tmp_path / "scheduled", 2, seconds=500, config=SHARDED["fsdp2"])) == 2
    work = {"runs": [{**run, "scheduled": False}], "sharding": "fsdp2"}
    with pytest.raises(LaunchError, match=r"all_gather|reduce_scatter"):
        launch(work, tmp_path / "none", 2, seconds=500, config=SHARDED["fsdp2"], patience=10)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDED)
def test_a_sharded_run_resumes_from_its_checkpoint(kinds, tmp_path, sharding):
    """In the middle of a rollout: after the first of two updates on it."""
    if sharding != "fsdp2":
        pytest.importorskip("deepspeed")
    rows = [kinds[name] for name in ("video", "text", "flat", "both")]
    config = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    (run,) = job(rows, 2, {"ral": METHODS["ral"]}, **config)
    resumed = {**run, "name": "resumed", "resume": str(tmp_path / "run" / "ral" / "checkpoint-1")}
    whole, rest = (
        launch({"runs": [one], "sharding": sharding}, tmp_path / folder, 2, seconds=500, config=SHARDED[sharding])
        for folder, one in (("run", run), ("rest", resumed))
    )
    for (before,), (after,) in zip(
        (ranks.values() for ranks in whole), (ranks.values() for ranks in rest), strict=True
    ):
        assert [entry["step"] for entry in after["logged"]] == [1, 2, 3, 3]
        assert difference(before["logged"][1:3], after["logged"][1:3]) == []
        # Two steps move each of some 1e6 weights by about the learning rate, 1e-3.
        assert after["weights"] == pytest.approx(before["weights"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDED)
def test_a_fault_of_one_process_stops_all_that_share_a_model(kinds, tmp_path, sharding):
    """DeepSpeed's engine has already stepped by then: the weights before the step are not available."""
    if sharding != "fsdp2":
        pytest.importorskip("deepspeed")
    rows = [kinds[name] for name in ("video", "text", "flat", "both")]
    (run,) = job(rows, 2, {"grpo": METHODS["grpo"]})
    work = {"runs": [{**run, "kind": "runs.stopped", "conduct": "fails"}], "sharding": sharding}
    ranks = [result["grpo"] for result in launch(work, tmp_path, 2, seconds=500, config=SHARDED[sharding])]
    for found in ranks:
        assert "step 1: the loss is not finite on process(es) 1 of 2" in found["said"]
        assert found["weights"] == (["model.safetensors"] if sharding == "fsdp2" else [])
    assert "penalty" not in ranks[0]["said"]
    assert "penalty (nan)" in ranks[1]["said"]
