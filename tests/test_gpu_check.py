"""`make gpu-check` at its small size: what it measures and prints, and its exit status."""

import gc
import json

import pytest
import torch

from benchmarks import gpu_check
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


def test_the_small_size_agrees_and_steps_every_method(run, capsys):
    status, found = run("--size", "small")
    assert status == 0
    assert [row["path"] for row in found["agreement"]] == [
        "plain sdpa float32", "packed sdpa float32", "plain sdpa bfloat16", "packed sdpa bfloat16",
    ]  # fmt: skip
    packed, plain, packed_half = found["agreement"][1:]
    assert packed["logps"] < 1e-5 < plain["logps"]
    assert packed_half["logps"] <= 1.5 * plain["logps"]
    assert packed_half["gradient"] <= 1.5 * plain["gradient"]
    assert [row["method"] for row in found["steps"]] == list(gpu_check.METHODS)
    assert set(gpu_check.METHODS) == set(TRAINERS)
    for row in (*found["agreement"], *found["steps"]):
        assert min(row["seconds"], row["tokens_s"]) > 0
        assert "peak_mib" in row
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("packed sdpa bfloat16", "attn_distill", "tokens_s", "peak_mib"))


def test_a_path_that_does_not_agree_fails(run, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "METHODS", {})
    # segments attend to later tokens, which is no advantage with random weights but changes every number
    everything = property(lambda one: torch.ones(one.segments.size(1), one.prefix + one.segments.size(1)).bool())
    monkeypatch.setattr(PrefixGroup, "visible", everything)
    status, found = run("--size", "small")
    assert status == 1
    assert [row["agrees"] for row in found["agreement"]] == [True, False, True, False]
    assert "does not agree with float32: packed sdpa float32 at P 143, packed sdpa bfloat16" in capsys.readouterr().err


def test_a_path_that_cannot_run_fails_and_the_others_are_measured(run, monkeypatch):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("no kernel for this card\nand more")

    monkeypatch.setattr(gpu_check, "METHODS", {})
    monkeypatch.setattr(gpu_check, "group_forward", no_kernel)
    status, found = run("--size", "small")
    assert status == 1
    assert [row.get("failure") for row in found["agreement"]] == [None, "no kernel for this card"] * 2


def test_without_a_gpu_it_says_so_in_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run() == (2, None)
    assert capsys.readouterr().err == "gpu-check: PyTorch finds no GPU here. `--size small` runs the same on a CPU.\n"
