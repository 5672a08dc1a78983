"""A penalty is a mean over the optimisation step, regardless of its division into micro-batches and processes."""

import pytest
import torch

from tests.processes import runs
from tests.processes.launch import launch
from tests.processes.test_equality import DDP

ROWS = ("video", "broken", "text", "both")  # 16 completions, of which 4 are left out
DISTILLS = ("attn_distill", {"teacher_model_name_or_path": "tiny_teacher", "attn_distill_weight": 10.0})
PENALTIES = {
    "ral": ("ral", {"num_iterations": 2, "attn_weight": 300.0}),
    "attn_distill": DISTILLS,
    "attn_distill, sum": (DISTILLS[0], {**DISTILLS[1], "attn_reduction": "sum", "grpo_weight": 0.0}),
}
PLAIN = {
    "on_bad_media": "skip",
    "mask_truncated_completions": True,
    "learning_rate": 0.1,  # for SGD, whose steps are linear in the gradients
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "max_steps": 2,
}


def cut(kinds, penalties, size, accumulation, **config):
    """Runs whose steps are `accumulation` micro-batches of `size` rows."""
    shape = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    return [
        {
            "kind": "runs.trained",
            "name": name,
            "conduct": "measured",
            "trainer": trainer,
            "rows": [kinds[kind] for kind in ROWS],
            "config": {**PLAIN, **shape, **options, **config},
        }
        for name, (trainer, options) in penalties.items()
    ]


def alone(folder, jobs):
    """By name: the penalty's part of the loss and the gradient of each step; the log."""
    folder.mkdir()
    found = {}
    for run in jobs:
        result = runs.trained(folder, {}, run)
        found[run["name"]] = result["added"], torch.load(folder / f"{run['name']}-gradients.pt"), result["logged"]
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, (added, gradients, logged) in one.items():
        steps = range(len(added))
        assert len(other[name][0]) == len(added) > 1
        assert added[1] != 0.0
        assert other[name][0] == pytest.approx(added, rel=1e-5, abs=1e-7), name
        for step in steps:
            difference = (gradients[step] - other[name][1][step]).norm() / gradients[step].norm()
            assert difference < 1e-5, (name, step, difference)
        for metric in ("ral/jsd", "ral/visual_mass", "attn_distill/jsd", "attn_distill/gkd", "attn_distill/sink_mass"):
            mine, theirs = ([entry[metric] for entry in log if metric in entry] for log in (logged, other[name][2]))
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6), (name, metric)


@pytest.mark.parametrize(
    ("names", "cuts"),
    [
        (["ral", "attn_distill"], [(4, 4)]),
        pytest.param([*PENALTIES], [(8, 2), (4, 4), (2, 8), "two processes"], marks=pytest.mark.slow),
    ],
    ids=["4x4", "8x2, 4x4, 2x8 and two processes"],
)
def test_penalties_do_not_depend_on_how_a_step_is_cut(kinds, tmp_path, names, cuts):
    """16x1 = 8x2 = 4x4 = 2x8 = two processes of 4x2, with truncated completions and a sample left out."""
    penalties = {name: PENALTIES[name] for name in names}
    whole = alone(tmp_path / "16x1", cut(kinds, penalties, 16, 1))
    for size, accumulation in (pair for pair in cuts if pair != "two processes"):
        assert_same(whole, alone(tmp_path / f"{size}x{accumulation}", cut(kinds, penalties, size, accumulation)))
    if "two processes" not in cuts:
        return
    ranks = launch({"runs": cut(kinds, penalties, 4, 2)}, tmp_path / "two", 2, seconds=200, config=DDP)
    together = {
        name: (
            [sum(pair) / 2 for pair in zip(*(rank[name]["added"] for rank in ranks), strict=True)],
            torch.load(tmp_path / "two" / f"{name}-gradients.pt"),
            ranks[0][name]["logged"],
        )
        for name in penalties
    }
    assert_same(whole, together)


# Twelve rows a step of 16, and four in the step that ends the epoch; eight rows a step, two steps a rollout.
SCHEDULES = {
    "a short last step": ({"num_train_epochs": 1, "max_steps": -1}, ((4, 3, 4), (2, 6, 8))),
    "two steps a rollout": ({}, ((8, 1, 2), (4, 2, 4), (2, 4, 8))),
}


@pytest.mark.parametrize("schedule", ["a short last step", pytest.param("two steps a rollout", marks=pytest.mark.slow)])
def test_a_step_may_be_a_part_of_a_rollout(kinds, tmp_path, schedule):
    config, cuts = SCHEDULES[schedule]
    penalties = {
        "attn_distill": (DISTILLS[0], {**DISTILLS[1], "grpo_weight": 0.0})
    }  # TRL's own loss counts the rollout
    first, *others = (
        alone(tmp_path / str(size), cut(kinds, penalties, size, accumulation, steps_per_generation=spread, **config))
        for size, accumulation, spread in cuts
    )
    for other in others:
        assert_same(first, other)
