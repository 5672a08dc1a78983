"""Distributions from hidden states: in float32 for any dtype of the weights, with the model's own scale and cap."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from trl_perception.modeling import divergence, head_of
from trl_perception.modeling.head import Head, log_probs

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS = {
    "logit_scale": (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25)),
    "logits_scaling": (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0)),
    "final_logit_softcapping": (Gemma2ForCausalLM, Gemma2Config(**SIZES, final_logit_softcapping=0.1)),
}


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_not_rounded_to_the_weights_type(autocast):
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(3, 64, generator=generator), torch.randn(9000, 64, generator=generator)
    rounded = [tensor.bfloat16() for tensor in (states, weight)]
    # logits up to some 30, where the spacing of bfloat16 is 0.125
    expected = torch.log_softmax(rounded[0].double() @ rounded[1].double().T / 0.9, -1).float()
    given = (states, weight) if autocast else rounded
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = log_probs(Head(given[1], None, None), given[0], 0.9)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    coarse = torch.log_softmax((rounded[0] @ rounded[1].T).float() / 0.9, -1)
    assert (coarse - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_the_models_own_scale_and_cap_are_kept(name):
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)  # distributions that are far from uniform
        output = model(torch.tensor([[3, 7, 11, 2]]), output_hidden_states=True)
    states = output.hidden_states[-1][0]
    expected = torch.log_softmax(output.logits[0] / 0.8, -1)
    head = head_of(model)
    torch.testing.assert_close(log_probs(head, states, 0.8), expected, atol=1e-5, rtol=0)
    plain = head._replace(scale=1.0, softcap=None)
    assert (log_probs(plain, states, 0.8) - expected).abs().max() > 0.1
    other = torch.log_softmax(states @ head.weight.T / 0.8, -1)
    # KL(student || teacher) of the model and the same head without scale and cap, at each position
    wanted = (expected.exp() * (expected - other)).sum(-1)
    found = divergence(head, states, plain, states, mix=1.0, temperature=0.8)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
