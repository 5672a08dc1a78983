"""Our trainer equals TRL's where both apply: text, and one image per prompt."""

import pytest
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from tests.helpers import history
from trl_perception.assets import model_path

SETTINGS = {
    "plain": {},
    "old_logps_and_kl": {"num_iterations": 2, "beta": 0.1},
    "accumulated": {"gradient_accumulation_steps": 2, "loss_type": "grpo"},
    "dr_grpo_sequence": {"loss_type": "dr_grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
}


@pytest.mark.parametrize("kind", [pytest.param("text", marks=pytest.mark.slow), "image"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_same_trajectory_as_trl(rows, make_trainer, kind, setting):
    rows = [{"prompt": row["prompt"], "images": [Image.open(p) for p in row["images"]]} for row in rows[kind]]
    if kind == "text":
        rows = [{"prompt": row["prompt"]} for row in rows]
    # Built and trained one after the other: building a trainer seeds the random state.
    ours = make_trainer(rows, **SETTINGS[setting])
    ours.train()
    theirs = make_trainer(
        rows,
        cls=GRPOTrainer,
        config_class=GRPOConfig,
        model=model_path("tiny"),
        # TRL keeps image placeholders out of completions; ours keeps video placeholders out as well.
        generation_kwargs={"suppress_tokens": ours.generation_kwargs["suppress_tokens"]},
        **SETTINGS[setting],
    )
    theirs.train()
    assert len(history(ours, "loss")[0]) == 5
    for mine, trls in zip(*(history(t, "loss", "grad_norm", "reward") for t in (ours, theirs)), strict=True):
        assert mine == pytest.approx(trls, abs=1e-5, rel=1e-4)
    for mine, trls in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        # Norms: where a gradient is rounding noise, Adam may step either way in a single element.
        assert (mine - trls).norm() <= 1e-4 * trls.norm()
