"""Small steps reach float32 weights and not bfloat16 ones, and a run that would lose them gives a warning."""

from types import SimpleNamespace

import pytest
import torch

from trl_perception.callbacks.precision import rounded_steps

SETTINGS = {"learning_rate": 1e-6, "lr_scheduler_type": "constant", "max_steps": 3, "gradient_checkpointing": False}


def share_changed(trainer) -> float:
    """Share of the weights that a short training changes."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    after = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    return changed / sum(parameter.numel() for parameter in after)


def test_small_steps_change_float32_weights_and_not_bfloat16_ones(rows, make_trainer, caplog):
    """A step of 1e-6 on a weight of 0.02: the spacing of bfloat16 there is at least 6e-5 (2**-6 / 2**8)."""
    assert torch.tensor(0.02 + 1e-6).bfloat16() == torch.tensor(0.02).bfloat16()
    shares = {}
    for dtype in ("bfloat16", "float32"):
        caplog.clear()
        trainer = make_trainer(rows["text"], model_init_kwargs={"dtype": dtype}, **SETTINGS)
        shares[dtype] = share_changed(trainer)
        said = [record.message for record in caplog.records if "master weights" in record.message]
        assert len(said) == (dtype == "bfloat16")
    assert shares["bfloat16"] < 0.05
    assert shares["float32"] > 0.5


def state(**deepspeed):
    plugin = SimpleNamespace(deepspeed_config=deepspeed) if deepspeed else None
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))


@pytest.mark.parametrize(
    ("dtype", "accelerator", "says"),
    [
        (torch.float32, state(), False),
        (torch.bfloat16, state(), True),
        (torch.float16, state(), True),
        (torch.bfloat16, state(bf16={"enabled": True}), False),  # DeepSpeed's own float32 copies
        (torch.bfloat16, state(bf16={"enabled": False}), True),
    ],
    ids=str,
)
def test_who_is_warned(dtype, accelerator, says):
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)]).to(dtype)
    model[0].requires_grad_(False).to(torch.bfloat16)  # frozen weights may be of any type
    found = rounded_steps(model, accelerator)
    assert (found is not None) == says
    if says:
        assert "6 of 6 trained weights" in found
        assert "0.6 %" in found
        assert "96 %" in found
