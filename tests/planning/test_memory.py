"""Memory of a process: parts computed by hand, and the peak of real steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from trl_perception.planning import MemoryPart, World, memory_parts, peak
from trl_perception.planning.memory import Batch, Engine, optimizer_states, weights_size
from trl_perception.planning.skeleton import policy_skeleton
from trl_perception.train import parse

ROOT = Path(__file__).parents[2]
ON_CPU = ["--config", "grpo/tiny", "--bf16", "false", "--use_cpu", "true"]


@pytest.fixture(scope="module")
def skeleton():
    _, config, model = parse(ON_CPU)
    return policy_skeleton(config, model)


ALONE = World()


def parts_of(skeleton, world=ALONE, decoding=None, **options):
    batch = Batch(32, 4, 16, 2, prompt=100, visual=0, completion=20, packed=True, **(decoding or {}))
    options = {"checkpointing": False, "optimizer": "adamw_torch", **options}
    return {part.name: part for part in memory_parts(skeleton, batch, world, **options)}


def test_tokens_of_a_forward_by_hand():
    # 16 completions of 2 prompts. Packed: 2 * (100 - 1) + 16 * (1 + 20) = 534; one row a completion: 16 * 120 = 1920
    batch = Batch(32, 4, 16, 2, prompt=100, visual=0, completion=20, packed=True)
    assert batch.tokens == 534
    assert Batch(32, 4, 16, 2, prompt=100, visual=0, completion=20, packed=False).tokens == 1920


def test_what_is_always_held_by_hand(skeleton):
    # 1,184,192 float32 parameters, all trained: weights and gradients 4 bytes each, AdamW 2 * 4
    size = 1_184_192
    parts = parts_of(skeleton)
    assert [parts[name].size for name in ("weights", "gradients", "optimizer", "master weights")] == [
        4 * size,
        4 * size,
        8 * size,
        0,
    ]
    # ZeRO-2 in bfloat16 on 8 processes: 2 bytes a weight, 2/8 a gradient, 4/8 a master weight, 8/8 for AdamW
    parts = parts_of(skeleton, World(8, "zero2", bf16=True))
    assert [parts[name].size for name in ("weights", "gradients", "optimizer", "master weights")] == [
        2 * size,
        size / 4,
        size,
        size / 2,
    ]
    # ZeRO-3 divides the weights too; DDP divides nothing and has buckets for the reduction
    assert parts_of(skeleton, World(8, "zero3", bf16=True))["weights"].size == size / 4
    ddp = parts_of(skeleton, World(8))
    assert ddp["optimizer"].size == 8 * size
    assert ddp["reduction buckets"].size == 4 * size


def test_cache_and_activations_by_hand(skeleton):
    # 4 layers, h 128, q 128, k 64 (2 heads of 32), m 384, float32.
    parts = parts_of(skeleton)
    # keys and values of 5 layers (one is copied while it grows): 5 * 2 * 64 * 32 rows * 120 tokens * 4 bytes
    assert parts["cache"].size == 5 * 2 * 64 * 32 * 120 * 4
    # the keys of each of the 4 prompts once: 4 * 100 + 32 * 20 tokens; 8 rows at a time: 1 * 100 + 8 * 20, or 8 * 120
    sizes = {(None, True): 1040, (8, True): 260, (8, False): 960}
    for (decoded, shared), tokens in sizes.items():
        cache = parts_of(skeleton, decoding={"decoded": decoded, "shared": shared})["cache"]
        assert cache.size == 5 * 2 * 64 * tokens * 4
    # a layer saves a token 6 h + 3 q + 2 k + 4 m = 768 + 384 + 128 + 1536 = 2816 values, and each of the 16 completions
    # its prompt's keys and values for every query head: 2 * 128 values of 120 tokens
    assert parts["activations"].size == 4 * 4 * (534 * 2816 + 16 * 120 * 2 * 128)
    # computed again: the inputs of 4 layers, 128 values a token
    assert parts_of(skeleton, checkpointing=True)["activations"].size == 4 * 4 * 534 * 128


def test_the_engine_has_weights_and_a_cache_of_its_own_by_hand(skeleton):
    # 1,184,192 float32 parameters; keys and values of 4 layers, of 4 prompts and 32 completions: 4 * 2 * 64 * 1040 * 4 bytes
    weights, cache = 4 * 1_184_192, 4 * 2 * 64 * (4 * 100 + 32 * 20) * 4
    parts = parts_of(skeleton, engine=Engine())
    found = [parts[name] for name in ("engine weights", "engine cache")]
    assert [(part.size, part.moment) for part in found] == [(weights, "always"), (cache, "always")]
    assert "cache" not in parts  # transformers samples nothing
    parts = parts_of(skeleton, World(2), engine=Engine(shares=2, sleeps=True))
    found = [parts[name] for name in ("engine weights", "engine cache")]
    # two processes that share it: half of the weights, and half of the keys of twice the rows
    assert [(part.size, part.moment) for part in found] == [(weights / 2, "rollout"), (cache, "rollout")]


def test_the_peak_is_that_of_the_fullest_moment():
    sizes = {"always": 10, "rollout": 7, "update": 3, "head": 2, "layer": 5}
    parts = [MemoryPart(moment, size, "", moment) for moment, size in sizes.items()]
    assert peak(parts) == 10 + max(7, 3 + max(2, 5))
    assert peak([part for part in parts if part.moment != "layer"]) == 10 + max(7, 3 + 2)


def test_quantised_weights_are_half_a_byte_or_one():
    model = nn.ModuleDict({"layer": nn.Linear(10, 10, bias=False), "visual": nn.Linear(10, 10, bias=False)})
    model.requires_grad_(False)
    # 100 language weights in 4 bit, 100 of the tower in float32
    assert [weights_size(model, bits) for bits in (None, 8, 4)] == [800, 500, 450]


def test_states_of_optimizers():
    assert [optimizer_states(name) for name in ("adamw_torch_fused", "adamw_8bit", "sgd", "adafactor")] == [
        (2, None),
        (2, 1),
        (1, None),
        (0, None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--group_forward", "off"],
        ["--gradient_checkpointing", "true"],
    ],
)
def test_the_estimate_is_within_a_quarter_of_a_step_s_peak(tmp_path, extra):
    """In a separate process, as memory that other tests left in the allocator would be counted or reused."""
    command = [sys.executable, "-m", "tests.planning.peak_of_a_step", str(tmp_path), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert 0.75 * seen["found"] <= seen["estimate"] <= 1.25 * seen["found"], seen
