"""Patch embeddings as matrix products: the same outputs and gradients as the convolution, and the same parameters."""

import copy
import pickle

import pytest
import torch

from tests.families.rows import prepared
from tests.families.tiny import tiny
from trl_perception.modeling import project_patches
from trl_perception.modeling.patch_embedding import PatchProjection


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_features_and_gradients_are_those_of_the_convolution(name):
    family = tiny(name)
    visual, found = prepared(family, "video").visual, []
    for projected in (False, True):
        model = copy.deepcopy(family.model)
        if projected:
            project_patches(model)
            model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
            assert type(model.model.visual.patch_embed.proj) is PatchProjection
        output = model.model.get_video_features(visual.pixel_values_videos, visual.video_grid_thw, return_dict=True)
        features = torch.cat(tuple(output.pooler_output))
        features.pow(2).sum().backward()
        found.append((features, {key: value.grad for key, value in model.named_parameters() if value.grad is not None}))
    (features, gradients), (others, other_gradients) = found
    torch.testing.assert_close(others, features, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == other_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[key], gradient, atol=1e-4, rtol=1e-4)


def test_a_patch_by_hand():
    # 1 * 2 + 3 * 4 + 0.5 = 14.5, one channel, a kernel of 1 x 1 x 2
    layer = torch.nn.Conv3d(1, 1, (1, 1, 2), stride=(1, 1, 2))
    layer.weight.data, layer.bias.data = torch.tensor([2.0, 4.0]).view(1, 1, 1, 1, 2), torch.tensor([0.5])
    project_patches(layer)
    assert layer(torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)).flatten().tolist() == [14.5]
    two = torch.tensor([1.0, 3.0, 1.0, 3.0]).view(1, 1, 1, 1, 4)  # more than one patch is a convolution
    assert layer(two).flatten().tolist() == [14.5, 14.5]


def test_another_convolution_is_left_alone():
    padded = torch.nn.Conv3d(1, 1, (1, 2, 2), padding=(0, 1, 1))
    project_patches(padded)
    assert type(padded) is torch.nn.Conv3d
