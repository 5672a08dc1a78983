"""Maps prompt tokens to frames, and shuffles frames."""

from dataclasses import replace

import torch
from torch import Tensor

from .visual_inputs import TOKEN_TYPE, VisualInputs


def token_frames(visual: VisualInputs) -> Tensor:
    """Return the frame of each prompt token, computed from the grids.

    A frame is one temporal cell of a video (with Qwen2-VL and Qwen2.5-VL two raw frames) or one image. Frames are
    numbered through the prompt in the order in which the model sees them, over all its images and videos. Only
    placeholder tokens are counted, so there may be text between the cells of a video.

    Returns: (P,) int64, -1 on text.
    Errors: ValueError if grids and placeholders differ in number.
    """
    frames = torch.full_like(visual.token_types, -1, dtype=torch.long)
    cells = {kind: _tokens_per_frame(visual, kind) for kind in TOKEN_TYPE}
    of_token = []  # (position of its first token, kind, tokens)
    for kind, sizes in cells.items():
        positions = (visual.token_types == TOKEN_TYPE[kind]).nonzero()[:, 0]
        if len(positions) != sum(sizes):
            raise ValueError(
                f"{visual.sample}: {len(positions)} {kind} placeholder tokens, but its grids make {sum(sizes)} of them. "
                "Take token types and grids from one call of the processor."
            )
        of_token += [(int(part[0]), part) for part in positions.split(sizes)]
    for frame, (_, part) in enumerate(sorted(of_token, key=lambda entry: entry[0])):
        frames[part] = frame
    return frames


def shuffle_cells(visual: VisualInputs, generator: torch.Generator) -> tuple[VisualInputs, list[list[int]]]:
    """Shuffle the temporal cells of each video of a prompt; grid and positions are unchanged.

    The permutation of each video with at least two cells is random and never the identity.

    Returns: the shuffled inputs, and for each video its permutation: cell i now shows what cell order[i] showed.
    """
    if visual.video_grid_thw is None:
        return visual, []
    orders = [not_identity(t, generator) for t in visual.video_grid_thw[:, 0].tolist()]
    names = ("pixel_values_videos", "video_features")  # features are reordered with the pixels
    known = {name: getattr(visual, name) for name in names if getattr(visual, name) is not None}
    reordered = {key: _reordered(values, visual.video_grid_thw, orders) for key, values in known.items()}
    return replace(visual, **reordered, video_features_of=None), orders


def not_identity(length: int, generator: torch.Generator) -> list[int]:
    """Draw a permutation uniformly from all but the identity; returns the identity if `length` < 2."""
    identity = list(range(length))
    if length < 2:
        return identity
    while True:
        order = torch.randperm(length, generator=generator).tolist()
        if order != identity:
            return order


def _reordered(values: Tensor, grid: Tensor, orders: list[list[int]]) -> Tensor:
    """Reorder the cells of each video in the concatenated pixels or features of videos."""
    cells, patches = grid[:, 0].tolist(), grid.prod(-1)
    patches_a_row = int(patches.sum()) // len(values)
    parts = values.split((patches // patches_a_row).tolist())
    return torch.cat(
        [
            part.unflatten(0, (count, -1))[torch.tensor(order, device=part.device)].flatten(0, 1)
            for part, count, order in zip(parts, cells, orders, strict=True)
        ]
    )


def _tokens_per_frame(visual: VisualInputs, kind: str) -> list[int]:
    """Return the tokens of each frame of one kind: h*w / merge_size^2, t times."""
    grid = visual.image_grid_thw if kind == "image" else visual.video_grid_thw
    rows = [] if grid is None else grid.tolist()
    return [h * w // visual.merge_size**2 for t, h, w in rows for _ in range(t)]
