"""The public API: names, signatures and result types."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch

from trl_perception import objectives
from trl_perception.objectives import Penalty, TokenWeights

SIGNATURES = {
    "appo_token_weights": "frame_attention, rewards, completion_mask, log_probs_at, *, top_tokens=15, top_frames=3, "
    "tokens_per_frame=64, reward_threshold=0.5, strategy='soft', alpha=0.7, divergence='kl', normalizer='groups', "
    "missing_ranks='skip'",
    "select_frames": "frame_attention, rewards, completion_mask, *, top_tokens, top_frames, reward_threshold, strategy",
    "visual_dependency": "sighted_logps, blind_logps, *, clamp=(0.0, 10.0)",
    "pgpo_token_weights": "dependency, completion_mask, *, threshold=0.4, visual_boost=2.0, eps=1e-08, "
    "threshold_mode='absolute', weight_floor=0.0, conserve_mass=True, max_weight=None",
    "ktr_token_weights": "visual_delta, temporal_delta, entropies, completion_mask, *, visual_keep_ratio=0.2, "
    "temporal_keep_ratio=0.2, entropy_keep_ratio=0.2, preset='paper', weighting='hard'",
    "attention_policy": "rows, key_mask",
    "jensen_shannon": "p, q",
    "papo_penalty": "logps, masked_logps, completion_mask, *, weight=0.01, entropy_weight=0.03, "
    "masked_entropy_weight=0.03, num_tokens=None",
    "vppo_token_weights": "dependency, completion_mask, *, keep_ratio=0.4",
    "mean_dependency": "dependency, completion_mask",
    "vppo_sequence_weights": "scores, *, floor=0.9",
    "entropy_penalty": "logps, completion_mask, *, weight=0.06, num_tokens=None",
    "t_grpo_bonus": "accuracy, shuffled_accuracy, *, bonus=0.3, margin=0.8, correct_above=0.1",
    "tw_token_weights": "completion_mask, log_probs_at, *, alpha=1.7, padding='skip'",
    "ral_penalty": "policy, old_policy, advantages, completion_mask, *, weight=1.0, num_tokens=None",
    "attn_distill_penalty": "policy, teacher_policy, completion_mask, *, weight=0.5, reduction='mean', "
    "num_tokens=None, num_completions=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_published_one(name):
    signature = inspect.signature(getattr(objectives, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


def test_all_public_names_are_exported():
    assert set(objectives.__all__) == {*SIGNATURES, "TokenWeights", "Penalty"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_docstring_names_every_argument(name):
    function = getattr(objectives, name)
    for parameter in inspect.signature(function).parameters:
        assert parameter in function.__doc__, f"{name} does not explain {parameter}"
    assert "Source:" in function.__doc__
    assert "Errors:" in function.__doc__


def test_results_are_frozen():
    weights = TokenWeights(torch.ones(1, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        weights.weights = torch.zeros(1, 1)
    assert Penalty(torch.zeros(())).metrics == {}


def test_objectives_import_torch_only():
    code = (
        "import sys, trl_perception.objectives\n"
        "found = {'transformers', 'trl', 'peft', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "raise SystemExit(f'objectives imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
