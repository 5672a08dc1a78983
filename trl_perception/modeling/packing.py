"""One packed row for rows that share prompts: the layout, its mask, and the way back to rows.

A run of G rows with one prompt of P tokens is laid out so that the prompt is there once:

    prompt[:-1] | prompt[-1] c_1 | prompt[-1] c_2 | ... | prompt[-1] c_G

Each segment starts with a copy of the last prompt token, so every position predicts the next one of its own segment. A
key is visible if it is earlier and in the prompt of the same run or in the same segment. Several runs stand one behind the
other, and nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..transfer import to_device


@dataclass(eq=False)
class PrefixGroup:
    """Where the tokens of G rows with one prompt stand in the packed row.

    Args:
        start, prefix: first position, and number of prompt tokens but the last: the prefix is [start, start+prefix).
        segments: (G,W) int, position of each segment's tokens, W the longest; anything behind a shorter one.
        filled: (N,) int, which of the G*W places hold a token.
        full: whether every segment has W tokens.
    """

    start: int
    prefix: int
    segments: Tensor
    filled: Tensor
    full: bool

    @cached_property
    def visible(self) -> Tensor:
        """(W,prefix+W) bool: keys that token w of a segment sees among the prefix and its own segment."""
        width = self.segments.size(1)
        seen = torch.ones(width, self.prefix + width, dtype=torch.bool, device=self.segments.device)
        return seen.tril(diagonal=self.prefix)


@dataclass(eq=False)
class Packing:
    """The layout of B left-padded rows as one packed row of L tokens.

    Args:
        runs: the runs in order.
        source: (L,) int, which token of the flattened (B,S) rows each packed one is.
        index: (B,S) int, where each token of the rows stands in the packed row; 0 on padding.
        mask: (B,S), attention mask of the rows.
        served: attention calls that followed this layout (see `packed_attention`).
    """

    runs: list[PrefixGroup]
    source: Tensor
    index: Tensor
    mask: Tensor
    served: int = field(default=0)

    @property
    def length(self) -> int:
        return len(self.source)

    def of(self, rows: slice, positions: slice) -> "Packing":
        """The way back to some of the rows, and to some of their positions."""
        return replace(self, index=self.index[rows, positions], mask=self.mask[rows, positions])

    def take(self, values: Tensor, positions: slice | Tensor) -> Tensor:
        """Packed values (1,...,L,d) of chosen positions of the rows: (B,...,positions,d). Padding holds anything."""
        index = self.index[:, positions]
        taken = values[0].index_select(-2, index.flatten())
        return taken.unflatten(-2, tuple(index.shape)).movedim(-3, 0)


def pack(attention_mask: Tensor, completion_width: int, runs: Sequence[int]) -> Packing:
    """The layout of rows of which neighbours share a prompt.

    Args:
        attention_mask: (B,S) 0 or 1: left-padded prompts of at least one token, right-padded completions.
        completion_width: T.
        runs: sizes of the runs of neighbours with one prompt; their sum is B.
    """
    device = attention_mask.device
    rows, total = attention_mask.shape
    width = total - completion_width
    parts = attention_mask[:, :width], attention_mask[:, width:]
    prompt_sizes, completion_sizes = torch.stack([part.sum(1) for part in parts]).tolist()  # waits for the device
    index = torch.zeros(rows, total, dtype=torch.long)
    source, laid, packed = [], [], 0
    row = 0
    for count in runs:
        members = range(row, row + count)
        prefix = prompt_sizes[row] - 1
        start = packed
        first = width - 1 - prefix
        source.append(torch.arange(prefix) + row * total + first)
        index[row : row + count, first : width - 1] = torch.arange(start, start + prefix)
        packed += prefix
        sizes = [1 + completion_sizes[member] for member in members]
        segments = torch.zeros(count, max(sizes), dtype=torch.long)
        filled = torch.zeros(count, max(sizes), dtype=torch.bool)
        for segment, (member, size) in enumerate(zip(members, sizes, strict=True)):
            here = torch.arange(packed, packed + size)
            segments[segment, :size], filled[segment, :size] = here, True
            index[member, width - 1 : width - 1 + size] = here
            source.append(torch.arange(size) + member * total + width - 1)
            packed += size
        full = min(sizes) == max(sizes)
        laid.append(PrefixGroup(start, prefix, segments, filled.flatten().nonzero()[:, 0], full))
        row += count
    tensors = [torch.cat(source), index, *(tensor for run in laid for tensor in (run.segments, run.filled))]
    together = to_device(torch.cat([tensor.flatten() for tensor in tensors]), device)
    of_tokens, of_rows, *of_runs = (
        part.view(tensor.shape)
        for part, tensor in zip(together.split([tensor.numel() for tensor in tensors]), tensors, strict=True)
    )
    pairs = zip(laid, of_runs[::2], of_runs[1::2], strict=True)
    laid = [replace(run, segments=segments, filled=filled) for run, segments, filled in pairs]
    return Packing(laid, of_tokens, of_rows, attention_mask)


def packed_positions(packing: Packing, positions: Sequence[Tensor], completion_width: int) -> Tensor:
    """Position ids of the packed row: every segment continues its prompt's.

    Args:
        positions: (A,P+T) for each run, A axes; completion_width: T.
    Returns: (A,1,L).
    """
    rows, total = packing.index.shape
    laid = positions[0].new_zeros(positions[0].size(0), rows, total)
    row = 0
    for run, of_run in zip(packing.runs, positions, strict=True):
        count, size = len(run.segments), run.prefix + 1 + completion_width
        laid[:, row : row + count, total - size :] = of_run[:, None, :size]
        row += count
    return laid.flatten(1)[:, None, packing.source]


class PackedMask(Tensor):
    """Stands for the mask (1,1,L,L) of a packed row, without its memory; `packing` says what it means.

    It travels where a prepared mask does, through every decoder layer and into the recomputation of gradient
    checkpointing. Attention that does not know it cannot use it by mistake: every computation with it fails.
    """

    packing: Packing

    @classmethod
    def of(cls, packing: Packing) -> "PackedMask":
        size = packing.length
        nothing = torch.zeros((), dtype=torch.bool, device=packing.source.device)
        mask = nothing.expand(1, 1, size, size).as_subclass(cls)
        mask.packing = packing
        return mask

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(function, "__name__", "")
        if name not in ("__get__", "__set__", "dim", "size", "to", "__len__", "__repr__"):
            raise RuntimeError(
                f"A packed row reached attention that does not follow its layout ({name}). Set group_forward='off', or use "
                "attn_implementation='sdpa'."
            )
        return super().__torch_function__(function, types, args, kwargs or {})


def packing_of(mask: Any) -> Packing | None:
    """The layout that a prepared attention mask carries, or None; a mask for each kind of layer is a dictionary."""
    masks = mask.values() if isinstance(mask, dict) else [mask]
    return next((found for mask in masks if (found := getattr(mask, "packing", None)) is not None), None)
