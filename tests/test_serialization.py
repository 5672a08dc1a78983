"""Rollouts as JSON and safetensors survive a round trip."""

import json

import pytest
import torch

from trl_perception.media import VisualInputs
from trl_perception.serialization import restore, store


def test_a_rollout_comes_back_as_it_was():
    visual = VisualInputs(sample="s", token_types=torch.tensor([0, 2, 2]), video_grid_thw=torch.tensor([[1, 2, 4]]))
    whole = torch.arange(12.0).view(4, 3)
    batch = {
        "ids": whole[:2],
        "rows": list(whole[2:]),
        "visual_inputs": [visual, visual, None],
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 5, dtype=torch.bfloat16),
        "scale": 1.5,
        "count": torch.tensor(7),
    }
    packed, tensors = store([batch])
    (back,) = restore(json.loads(json.dumps(packed)), tensors, torch.device("cpu"))
    assert list(back) == list(batch)
    for name in ("ids", "mask", "empty", "count"):
        assert back[name].dtype == batch[name].dtype
        assert torch.equal(back[name], batch[name])
    assert [row.tolist() for row in back["rows"]] == [[6, 7, 8], [9, 10, 11]]
    assert back["scale"] == 1.5
    assert back["visual_inputs"][0] is back["visual_inputs"][1]
    assert back["visual_inputs"][2] is None
    assert back["visual_inputs"][0].sample == "s"
    assert back["visual_inputs"][0].pixel_values is None
    assert back["visual_inputs"][0].video_grid_thw.tolist() == [[1, 2, 4]]


def test_features_stay_those_of_their_pixels():
    empty, pixels = torch.empty(8, 3, device="meta"), torch.ones(8, 3)
    known = {"token_types": torch.tensor([2, 2]), "video_features": torch.ones(2, 5)}
    batch = [
        VisualInputs("let go", pixel_values_videos=empty, **known),
        VisualInputs("kept", pixel_values_videos=pixels, **known),
    ]
    packed, tensors = store(batch)
    for visual in restore(json.loads(json.dumps(packed)), tensors, torch.device("cpu")):
        assert visual.pixel_values_videos is visual.video_features_of
        assert visual.pixel_values_videos.is_meta == (visual.sample == "let go")
        assert (visual.pixel_values_videos.shape, visual.pixel_values_videos.dtype) == ((8, 3), torch.float32)
        assert visual.video_features.tolist() == torch.ones(2, 5).tolist()


def test_what_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match=r"rollout\[0\].signal\[1\] is a object, which a checkpoint cannot hold"):
        store([{"signal": [None, object()]}])
