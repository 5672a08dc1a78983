"""Maps prompt tokens to frames, and shuffles frames."""

from dataclasses import replace

import torch
from torch import Tensor

from ..transfer import to_device
from .visual_inputs import PIXELS, TOKEN_TYPE, VisualInputs


def token_frames(visual: VisualInputs) -> Tensor:
    """Return the frame of each prompt token, computed from the grids.

    A frame is one temporal cell of a video (with Qwen2-VL and Qwen2.5-VL two raw frames) or one image. Frames are
    numbered through the prompt in the order in which the model sees them, over all its images and videos. Only
    placeholder tokens are counted, so there may be text between the cells of a video.

    Returns: (P,) int64, -1 on text.
    Errors: ValueError if grids and placeholders differ in number.
    """
    frames = torch.full_like(visual.token_types, -1, dtype=torch.long)
    for frame, (_, _, tokens) in enumerate(_cells(visual)):
        frames[tokens] = frame
    return frames


def cells_in_prompt_order(visual: VisualInputs) -> list[tuple[str, int]]:
    """Return the kind of each frame of a prompt (see [`token_frames`]), and the number of its medium among those of its kind."""
    return [(kind, medium) for kind, medium, _ in _cells(visual)]


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


def keep_cells(visual: VisualInputs, kept: Tensor) -> VisualInputs:
    """Keep some frames of a prompt: their pixels, features, cells of the grids and tokens.

    Args:
        kept: (frames,) bool, numbered as by [`token_frames`].
    """
    numbers, kept = token_frames(visual), kept.cpu()
    tokens = (numbers < 0) | kept[numbers.clamp(min=0)]
    changed: dict[str, Tensor | None] = {"token_types": visual.token_types[tokens]}
    of_kind = {kind: [] for kind in TOKEN_TYPE}
    for (kind, medium), keep in zip(cells_in_prompt_order(visual), kept.tolist(), strict=True):
        of_kind[kind].append((medium, keep))
    for kind, cells in of_kind.items():
        if (grid := visual.grid(kind)) is None:
            continue
        media = [[keep for medium, keep in cells if medium == number] for number in range(len(grid))]
        orders = [[cell for cell, keep in enumerate(of_medium) if keep] for of_medium in media]
        some = torch.tensor([bool(order) for order in orders])
        rows = {name: getattr(visual, name) for name in (PIXELS[kind], f"{kind}_features", f"{kind}_position_ids")}
        rows = {name: values for name, values in rows.items() if values is not None}
        changed |= {name: _reordered(values, grid, orders) if some.any() else None for name, values in rows.items()}
        times = torch.tensor([len(order) for order in orders], dtype=grid.dtype)
        left = torch.cat([times[:, None], grid[:, 1:]], dim=1)[some]
        changed[f"{kind}_grid_thw"] = left if some.any() else None
        changed[f"{kind}_features_of"] = None
        if kind == "video" and visual.second_per_grid_ts is not None:
            changed["second_per_grid_ts"] = visual.second_per_grid_ts[some]
    return replace(visual, **changed)


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
    """Reorder the cells of each medium, or take some of them, in the concatenated pixels or features of a kind.

    A cell has one row (a picture), or as many as its share of all patches.
    """
    cells, patches = grid[:, 0].tolist(), grid.prod(-1)
    pictures = len(values) == sum(cells)
    sizes = cells if pictures else (patches // (int(patches.sum()) // len(values))).tolist()
    return torch.cat(
        [
            part.unflatten(0, (count, -1))[to_device(torch.tensor(order, dtype=torch.long), part.device)].flatten(0, 1)
            for part, count, order in zip(values.split(sizes), cells, orders, strict=True)
        ]
    )


def _cells(visual: VisualInputs) -> list[tuple[str, int, Tensor]]:
    """Return kind, number of the medium and tokens of each frame, in the order of the prompt."""
    cells = []
    for kind, token_type in TOKEN_TYPE.items():
        media, sizes = _tokens_per_frame(visual, kind)
        positions = (visual.token_types == token_type).nonzero()[:, 0]
        if len(positions) != sum(sizes):
            raise ValueError(
                f"{visual.sample}: {len(positions)} {kind} placeholder tokens, but its grids make {sum(sizes)} of them. "
                "Take token types and grids from one call of the processor."
            )
        cells += [(kind, medium, tokens) for medium, tokens in zip(media, positions.split(sizes), strict=True)]
    return sorted(cells, key=lambda cell: int(cell[2][0]))


def _tokens_per_frame(visual: VisualInputs, kind: str) -> tuple[list[int], list[int]]:
    """Return the medium and the tokens of each frame of one kind: h*w / merge_size^2, t times."""
    grid = visual.grid(kind)
    rows = [] if grid is None else grid.tolist()
    frames = [(medium, h * w // visual.merge_size**2) for medium, (t, h, w) in enumerate(rows) for _ in range(t)]
    return [medium for medium, _ in frames], [size for _, size in frames]
