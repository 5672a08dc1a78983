"""No trainer makes a (tokens, vocabulary) tensor: distributions exist for a tile of tokens, or of the vocabulary, at a time."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.kernels import chunked_divergence, chunked_logprob

from tests.helpers import methods
from tests.trainers.test_fast_paths import OPTIONS
from trl_perception.trainers import TRAINERS

TILE, MOST = 16, 64  # tokens that the fused head takes at a time here, and those that APPO may ask for in a call


class Distributions(TorchDispatchMode):
    """Keeps the largest number of rows of any tensor whose last axis is the vocabulary, except the head's own weights."""

    def __init__(self, model):
        super().__init__()
        text = model.config.get_text_config()
        self.vocabulary, self.head, self.rows = text.vocab_size, (text.hidden_size, text.vocab_size), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if not isinstance(value, torch.Tensor) or not value.ndim or tuple(value.shape) == self.head:
                continue
            if value.size(-1) == self.vocabulary:
                self.rows = max(self.rows, value.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("name", methods(fast=("tw_grpo",)))
def test_distributions_exist_in_tiles(rows, make_trainer, monkeypatch, name, packing):
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", TILE)
    monkeypatch.setattr(chunked_divergence, "VOCAB_CHUNK_SIZE", 100)
    extra = {"dependency": "kl"} if name == "pgpo" else {}
    if name in ("appo", "t_grpo"):
        extra = {"accuracy_reward": "letter_variety"}
    trainer = make_trainer(
        rows["video"],
        cls=TRAINERS[name],
        **{**OPTIONS[name], **extra},
        group_forward=packing,
        max_completion_length=40,
        generation_kwargs={"min_new_tokens": 40},
        max_steps=1,
    )
    with Distributions(trainer.model) as seen:
        trainer.train()
    assert MOST < 4 * 40
    assert 0 < seen.rows <= MOST


def test_the_watch_sees_logits(rows, make_trainer):
    model = make_trainer(rows["text"]).model
    ids = torch.ones(2, 50, dtype=torch.long)
    with torch.no_grad(), Distributions(model) as seen:
        model(input_ids=ids)
    assert seen.rows == 100
