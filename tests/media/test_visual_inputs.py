"""Visual inputs of a batch: their positions, and that every placeholder has a feature."""

import pytest
import torch

from trl_perception.families.qwen_vl import QwenVL
from trl_perception.media import VisualInputs, check_placeholders, padded_token_types

IDS = {"image": 7, "video": 8}


def video(tokens=2, name="clip"):
    """A prompt of tokens+2 ids with one video of one cell: 4 patches make a token."""
    return VisualInputs(
        sample=name,
        token_types=torch.tensor([0, *[2] * tokens, 0]),
        pixel_values_videos=torch.full((4 * tokens, 3), float(tokens)),
        video_grid_thw=torch.tensor([[1, 2, 2 * tokens]]),
        second_per_grid_ts=torch.tensor([0.5]),
    )


def text(length=3):
    return VisualInputs(sample="text", token_types=torch.zeros(length, dtype=torch.long))


def test_features_and_tokens_by_hand():
    # 1 * 2 * 6 patches / 2^2 = 3
    assert video(3).features("video") == 3
    assert video(3).features("image") == 0
    assert video(3).visual_tokens == 3
    assert text().visual_tokens == 0


def test_batches_mark_placeholders_by_position_behind_left_padding():
    batch = [video(2), text(3), video(1)]
    assert padded_token_types(batch, prompt_width=5, total_width=7).tolist() == [
        [0, 0, 2, 2, 0, 0, 0],  # one padding, prompt of four, completion of two
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 2, 0, 0, 0],
    ]
    kwargs = QwenVL().forward_kwargs(batch)
    assert kwargs["pixel_values_videos"][:, 0].tolist() == [2.0] * 8 + [1.0] * 4
    assert kwargs["video_grid_thw"].tolist() == [[1, 2, 4], [1, 2, 2]]
    assert kwargs["second_per_grid_ts"].tolist() == [0.5, 0.5]
    assert "pixel_values" not in kwargs
    assert QwenVL().forward_kwargs([text(), text()]) == {}


def test_every_placeholder_has_its_feature_or_the_sample_is_named():
    ids = torch.tensor([[1, 8, 8, 2], [8, 8, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])  # placeholders under padding do not count
    check_placeholders(ids, mask, IDS, [video(2), text(2)])
    with pytest.raises(ValueError, match=r"^second: the forward has 0 video placeholder tokens but 2 video features"):
        check_placeholders(ids, mask, IDS, [video(2), video(2, "second")])
    with pytest.raises(ValueError, match=r"^first: the forward has 2 video placeholder tokens but 3 video features"):
        check_placeholders(ids, mask, IDS, [video(3, "first"), text(2)])
    with pytest.raises(ValueError, match=r"row 0 of the batch: .* 2 video placeholder tokens but 0 .* lost on the way"):
        check_placeholders(ids, mask, IDS, None)
    with pytest.raises(ValueError, match="text: the forward has 1 image placeholder tokens but 0 image features"):
        check_placeholders(torch.tensor([[7]]), torch.ones(1, 1), IDS, [text(1)])
