"""Tokens to frames, and frames out of order."""

import pytest
import torch

from trl_perception.media import VisualInputs
from trl_perception.media.frames import not_identity, shuffle_cells, token_frames


def prompt(types, images=(), videos=(), pixels=None):
    return VisualInputs(
        sample="s",
        token_types=torch.tensor(types),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        pixel_values_videos=pixels,
    )


def test_frames_by_hand():
    # image 1x2x4 -> 2 tokens; video 3x2x2 -> 1 token a cell; image 1x2x2 -> 1 token
    types = [0, 1, 1, 0, 2, 2, 2, 0, 1, 0]
    frames = token_frames(prompt(types, images=[[1, 2, 4], [1, 2, 2]], videos=[[3, 2, 2]]))
    assert frames.tolist() == [-1, 0, 0, -1, 1, 2, 3, -1, 4, -1]


def test_frames_where_text_stands_between_the_cells_of_a_video():
    # Qwen3-VL writes a time before each cell: two cells of 2 tokens, then another video of one cell
    types = [0, 2, 2, 0, 0, 2, 2, 0, 2]
    frames = token_frames(prompt(types, videos=[[2, 2, 4], [1, 2, 2]]))
    assert frames.tolist() == [-1, 0, 0, -1, -1, 1, 1, -1, 2]


def test_text_has_no_frames():
    assert token_frames(prompt([0, 0, 0])).tolist() == [-1, -1, -1]


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 video placeholder tokens, but its grids make 2"):
        token_frames(prompt([2, 2, 2], videos=[[2, 2, 2]]))


def test_cells_move_as_a_whole_and_stay_in_their_video():
    # two videos of 3 and 2 cells with 4 patches each; a patch names its video and cell
    pixels = torch.tensor(
        [[video, cell] for video, cells in ((0, 3), (1, 2)) for cell in range(cells) for _ in range(4)]
    )
    original = prompt([2] * 5, videos=[[3, 2, 2], [2, 2, 2]], pixels=pixels)
    other, orders = shuffle_cells(original, torch.Generator().manual_seed(0))
    assert orders[1] == [1, 0]  # the only permutation of two that is not the identity
    expected = [[0, cell] for cell in orders[0] for _ in range(4)] + [[1, cell] for cell in (1, 0) for _ in range(4)]
    assert other.pixel_values_videos.tolist() == expected
    assert torch.equal(other.video_grid_thw, original.video_grid_thw)
    assert torch.equal(original.pixel_values_videos, pixels)


def test_permutations_are_uniform_over_all_but_the_identity():
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(not_identity(3, generator)) for _ in range(500)]
    assert len(set(drawn)) == 5
    assert (0, 1, 2) not in drawn
    assert min(drawn.count(order) for order in set(drawn)) > 60  # 100 expected
    assert not_identity(1, generator) == [0]
    assert not_identity(0, generator) == []
