"""The host waits for the device once a rollout or a forward, not once a group, frame, layer or token."""

from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.fake_device import DEVICE, Waits, on_device
from tests.trainers.test_fast_paths import OPTIONS, count_forwards
from trl_perception.assets import model_path
from trl_perception.trainers import TRAINERS
from trl_perception.transfer import to_device

# Which distributions are compared is found on the host, in each group; `shape_rewards` logs its numbers group by group.
ONCE_A_GROUP = ("objectives/appo.py", "objectives/rank_divergence.py", "trainers/t_grpo_trainer.py")


def deeper(times):
    """A model like the tiny one with `times` its layers, in tower and decoder."""
    config = AutoConfig.from_pretrained(model_path("tiny"))
    text = config.get_text_config()
    text.num_hidden_layers *= times
    text.layer_types = text.layer_types * times
    config.vision_config.depth *= times
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.config._name_or_path = model_path("tiny")
    return model


def step(make_trainer, monkeypatch, rows, name, times, **config):
    """Waits by line of the package in a step of `times` groups, frames, tokens and layers, and its forwards."""

    class Unequal(TRAINERS[name]):
        def _generate_single_turn(self, *args, **kwargs):
            ids, logps = super()._generate_single_turn(*args, **kwargs)
            return [row[: len(row) - index % 2] for index, row in enumerate(ids)], logps

    if name in ("appo", "t_grpo"):
        config["accuracy_reward"] = "letter_variety"
    trainer = make_trainer(
        rows["video"],
        cls=Unequal,
        model=deeper(times),
        **{**OPTIONS[name], **config},
        num_generations=2,
        per_device_train_batch_size=2 * times,
        video_fps=1.0 * times,
        max_completion_length=5 * times,
        generation_kwargs={"min_new_tokens": 5 * times},
        group_forward="on",
        optim="sgd",
        max_steps=1,
    )
    forwards = count_forwards(monkeypatch, trainer)
    with on_device(trainer) as waits:
        trainer.train()
    return Counter({line: count for line, count in waits.lines.items() if "..." not in line}), len(forwards)


FAST = ("ktr",)  # forwards, views and credit


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TRAINERS]
)
def test_waits_do_not_grow_with_the_rollout(make_trainer, monkeypatch, rows, name):
    (small, few), (large, many) = (step(make_trainer, monkeypatch, rows, name, times) for times in (1, 2))
    assert sum(count for line, count in small.items() if line.startswith("modeling/packing.py")) == few  # it counts

    def most(line):
        return small[line] * (2 if line.startswith(ONCE_A_GROUP) else many / few)

    grown = {line: (small[line], count) for line, count in large.items() if count > most(line)}
    assert not grown


def test_the_stand_in_counts_and_refuses():
    torch._C._ensureCUDADeviceGuardSet()
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    with patch.context(), Waits() as waits:
        values = torch.arange(6.0).to(DEVICE)
        assert values.device == DEVICE
        assert waits.lines.total() == 1
        to_device(torch.ones(3), DEVICE)  # pinned
        (values * 2 + 1).sum()
        assert waits.lines.total() == 1
        for wait in (
            lambda: values.sum().item(),
            lambda: values.tolist(),
            lambda: bool(values[0] > 1),
            lambda: values[values > 1],
            lambda: values.nonzero(),
            lambda: torch.ones(3).to(DEVICE, non_blocking=True),  # of memory that is not pinned
        ):
            before = waits.lines.total()
            wait()
            assert waits.lines.total() == before + 1
        with pytest.raises(RuntimeError, match="same device"):
            values + torch.ones(6)
    patch.undo()
