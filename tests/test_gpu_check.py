"""`make gpu-check` at its small size: what it measures and prints, and its exit status."""

import gc
import json

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.models import random_model
from trl_perception.modeling import packed_attention
from trl_perception.modeling.packing import PrefixGroup
from trl_perception.trainers import TRAINERS


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command with some arguments; returns its exit status and its figures, None without figures."""
    path = tmp_path / "figures" / "gpu.json"

    def run_it(*arguments):
        monkeypatch.setattr("sys.argv", ["gpu_check", "--json", str(path), *arguments])
        status = gpu_check.main()
        return status, json.loads(path.read_text()) if path.exists() else None

    gc.freeze()  # keep earlier imports out of full garbage collections
    yield run_it
    gc.unfreeze()


@pytest.mark.parametrize(
    "families", [["qwen2_5_vl"], pytest.param(["qwen2_5_vl", "qwen3_vl", "qwen3_5"], marks=pytest.mark.slow)], ids=len
)
def test_the_small_size_agrees_and_steps_every_method(run, capsys, families):
    status, found = run("--size", "small", "--families", *families)
    assert status == 0
    paths = ["plain sdpa float32", "packed sdpa float32", "plain sdpa bfloat16", "packed sdpa bfloat16"]
    assert [(row["family"], row["path"]) for row in found["agreement"]] == [
        (family, path) for family in families for path in paths
    ]
    for start in range(0, len(found["agreement"]), len(paths)):
        packed, plain, packed_half = found["agreement"][start + 1 : start + len(paths)]
        assert packed["logps"] < 1e-5 < plain["logps"]
        assert packed_half["logps"] <= 1.5 * plain["logps"]
        assert packed_half["gradient"] <= 1.5 * plain["gradient"]
        assert min(plain["mfu"], packed_half["mfu"]) > 0
    assert [row["method"] for row in found["steps"]] == list(gpu_check.METHODS)
    assert set(gpu_check.METHODS) == set(TRAINERS)
    assert all(row["planned_mib"] > 0 for row in found["steps"])
    assert [row["trainer"] for row in found["peer"]] == ["TRL", "trl_perception"]
    for row in (*found["agreement"], *found["steps"], *found["peer"]):
        assert min(row["seconds"], row["tokens_s"]) > 0
        assert "peak_mib" in row
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("packed sdpa bfloat16", "attn_distill", "tokens_s", "peak_mib"))


def test_a_path_that_does_not_agree_fails(run, monkeypatch, capsys):
    # segments attend to later tokens, which is no advantage with random weights but changes every number
    everything = property(lambda one: torch.ones(one.segments.size(1), one.prefix + one.segments.size(1)).bool())
    monkeypatch.setattr(packed_attention, "can_merge", lambda *tensors: False)
    monkeypatch.setattr(PrefixGroup, "visible", everything)
    status, found = run("--size", "small", "--parts", "agreement", "--families", "qwen2_5_vl")
    assert status == 1
    assert [row["agrees"] for row in found["agreement"]] == [True, False, True, False]
    said = capsys.readouterr().err
    assert "with float32: qwen2_5_vl packed sdpa float32 at P 143, qwen2_5_vl packed sdpa bfloat16 at" in said


def test_a_path_that_cannot_run_fails_and_the_others_are_measured(run, monkeypatch):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("no kernel for this card\nand more")

    monkeypatch.setattr(gpu_check, "group_forward", no_kernel)
    status, found = run("--size", "small", "--parts", "agreement", "--families", "qwen2_5_vl")
    assert status == 1
    assert [row.get("failure") for row in found["agreement"]] == [None, "no kernel for this card"] * 2


def test_without_a_gpu_it_says_so_in_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run() == (2, None)
    assert capsys.readouterr().err == "gpu-check: PyTorch finds no GPU here. `--size small` runs the same on a CPU.\n"


def test_operations_by_hand():
    model, _ = random_model("1m", dtype=torch.bfloat16)
    group = gpu_check.Group(model, 2, 4, 16, "cpu")
    layers, tower = (
        sum(p.numel() for p in part.parameters()) for part in (model.model.language_model.layers, model.model.visual)
    )
    # P 143, G 4, R 16: plain 4 * 159 = 636 tokens, packed 142 + 4 * 17 = 210; a head of 1024 x 128; 2 cells of 256 patches
    head = 4 * 1024 * 128 * 4 * 16
    assert gpu_check.operations(model, group, False) == 4 * layers * 636 + head + 2 * tower * 4 * 512
    assert gpu_check.operations(model, group, True) == 4 * layers * 210 + head + 2 * tower * 512
