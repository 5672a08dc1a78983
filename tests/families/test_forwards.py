"""Every family, every kind of row: the forwards of this package against the processor and the model by themselves."""

import pytest
import torch

from tests.families.reference import logits
from tests.families.rows import KINDS, prepared
from tests.families.tiny import FAMILIES, tiny
from trl_perception.modeling import encode
from trl_perception.modeling.row_forward import row_forward

OURS = tuple(name for name in FAMILIES if name not in ("llava_onevision", "minicpmv4_6"))
COMPLETION = torch.tensor([21, 34, 55, 89, 144])
each_row = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("name", OURS)


def ours(model, prompt, visual=None, view=None):
    """Logits (P+T,V) of prompt and completion along the plain path of this package."""
    ids = torch.cat([torch.tensor(prompt.input_ids), COMPLETION])[None]
    visuals = [prompt.visual if visual is None else visual]
    return row_forward(
        model, visuals=visuals, completion_width=len(COMPLETION), input_ids=ids, attention_mask=torch.ones_like(ids)
    ).logits[0]


def log_probs(values):
    return torch.log_softmax(values.float(), -1)


@each_row
@each_family
def test_log_probs_equal_those_of_the_processors_own_inputs(name, kind):
    family = tiny(name)
    prompt = prepared(family, kind)
    with torch.no_grad():
        found = log_probs(ours(family.model, prompt))
    expected = log_probs(logits(family, prompt, kind, COMPLETION))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@each_row
@each_family
def test_features_of_a_frozen_tower_give_the_same(name, kind):
    family = tiny(name)
    prompt = prepared(family, kind)
    with torch.no_grad():
        expected = log_probs(ours(family.model, prompt))
        family.model.requires_grad_(False)
        merged = encode(family.model, prompt.visual)
        family.model.requires_grad_(True)
        unmerged = encode(family.model, prompt.visual)
        for known in (merged, unmerged):
            assert known.knows_features == bool(KINDS[kind])
            torch.testing.assert_close(log_probs(ours(family.model, prompt, known)), expected, atol=1e-5, rtol=0)
