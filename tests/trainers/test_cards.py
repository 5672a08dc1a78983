"""Model cards name the method, its paper and how to cite it."""

from pathlib import Path

import pytest

from trl_perception.trainers import TRAINERS

PAPERS = {
    "grpo": "2402.03300",
    "appo": "2602.23823",
    "pgpo": "2604.01840",
    "ktr": "2601.19686",
    "ral": "2602.04884",
    "attn_distill": "2602.04884",
}


@pytest.mark.parametrize("name", TRAINERS)
def test_the_card_carries_paper_and_citation(rows, make_trainer, name):
    def accuracy(completions, **columns):
        return [1.0] * len(completions)

    options = {"ral": {"num_iterations": 2}, "attn_distill": {"teacher_model_name_or_path": "tiny"}}
    trainer = make_trainer(rows["text"], cls=TRAINERS[name], reward=accuracy, **options.get(name, {}))
    trainer.create_model_card(model_name="seen")
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "# Model Card for seen" in card
    assert f"This model was trained with {trainer._name}" in card
    assert f"https://huggingface.co/papers/{PAPERS[name]}" in card
    assert f"arXiv:{PAPERS[name]}" in card
    assert "trl-perception" in card
