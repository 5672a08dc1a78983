"""Builds the row of a record: a group of completions with its prompt and media, truncated, and its logged signals."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..media import PreparedPrompt, media_blocks, media_columns
from ..media.errors import describe

# Limits of a row: 8 completions at every limit, with weights and five signals, take about 0.33 MB on disk.
MOST_TOKENS = 1024  # of a completion
MOST_LETTERS = 16_384  # of a prompt or a completion
MOST_TOKEN_FRAMES = 8192  # token-frame values of one completion: the tokens with the largest values are kept

PLAIN_SETTINGS = ("loss_type", "num_generations", "num_iterations", "learning_rate", "temperature", "beta", "max_steps")


def record_row(
    prompt: PreparedPrompt,
    *,
    step: int,
    completions: Sequence[Sequence[int]],
    mask: Tensor,
    rewards: Mapping[str, Tensor],
    reward_weights: Tensor,
    advantages: Tensor,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Convert a group to a row of [`trl_perception.reports.rollouts.SCHEMA`], without signals.

    Args:
        prompt: the group's prompt.
        step: the first optimisation step that uses the rollout.
        completions: G completions' token ids, without padding.
        mask: (G,T) bool, True on tokens that the policy is trained on.
        rewards: {name: (G,)}, NaN where a reward does not apply. reward_weights: one for each of them.
        advantages: (G,).
    """
    row = prompt.row
    values = np.array([of_one.tolist() for of_one in rewards.values()]).reshape(len(rewards), len(completions)).T
    total = np.nansum(values * reward_weights.cpu().numpy(), axis=1)
    numbers = zip(values.tolist(), total.tolist(), advantages.tolist(), mask.tolist(), strict=True)
    return {
        "step": step,
        "sample": _cut("" if prompt.visual is None else prompt.visual.sample.removeprefix("sample ")),
        "prompt": _cut(_text_of(prompt.logged)),
        "media": [_medium(kind, source) for kind, source in _media(prompt)],
        "frames": _frames(prompt),
        "evidence": _spans(row.get("evidence")),
        "problem_type": _cut(row.get("problem_type")),
        "solution": _cut(row.get("solution")),
        "reward_names": list(rewards),
        "signals": [],
        "completions": [
            {
                "text": _cut(tokenizer.decode(ids, skip_special_tokens=True)),
                "tokens": [tokenizer.decode([token]) for token in ids[:MOST_TOKENS]],
                "token_ids": list(ids[:MOST_TOKENS]),
                "mask": trained[: min(len(ids), MOST_TOKENS)],
                "length": len(ids),
                "rewards": [None if math.isnan(value) else value for value in of_rewards],
                "reward": reward,
                "advantage": advantage,
                "token_weights": None,
                "signals": [],
            }
            for ids, (of_rewards, reward, advantage, trained) in zip(completions, numbers, strict=True)
        ],
    }


class RecordBuilder:
    """Adds signals to the row of a group; a signal replaces an earlier one of the same name.

    Args:
        row: the row of [`record_row`], modified in place.
        start: the index of the group's first completion among the rows of its rollout.
        mask: (G,T) bool, True on tokens that the policy is trained on.
    """

    def __init__(self, row: dict[str, Any], start: int, mask: Tensor):
        self.row, self.start, self.mask = row, start, mask.cpu()

    def __len__(self) -> int:
        """The number of completions."""
        return len(self.row["completions"])

    def state(self) -> dict[str, Any]:
        """The record as JSON, for a checkpoint between two updates on its rollout."""
        return {"start": self.start, "mask": self.mask.int().tolist(), "row": self.row}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "RecordBuilder":
        """Restore a record from a checkpoint."""
        return cls(state["row"], state["start"], torch.tensor(state["mask"], dtype=torch.bool))

    def log_group_signal(self, name: str, values: Tensor) -> None:
        """Add (F,) values of the whole group."""
        kind = "frame_mask" if values.dtype == torch.bool else "frame"
        _put(self.row["signals"], name, kind, values)

    def log_signal(self, index: int, name: str, values: Tensor, axes: str) -> None:
        """Add one completion's (T,), (F,) or (T,F) values, for axes "GT", "GF" or "GTF"."""
        completion, values = self.row["completions"][index], values.detach().cpu()
        signals, tokens = completion["signals"], min(completion["length"], MOST_TOKENS)
        if axes == "GT" and values.dtype == torch.bool:
            _put(signals, name, "mask", values[:tokens])
        elif axes == "GT" and name == "token_weights":
            completion["token_weights"] = rounded(values[:tokens])
        elif axes == "GT":
            _put(signals, name, "token", values[:tokens])
        elif axes == "GF":
            _put(signals, name, "frame", values)
        elif axes == "GTF" and not values.size(1):
            return  # a prompt without frames
        elif axes == "GTF":
            counted = self.mask[index, : len(values)]
            _put(signals, name, "frame", values[counted].mean(0) if counted.any() else 0 * values[0])
            most = max(1, MOST_TOKEN_FRAMES // max(1, values.size(1)))
            looking = values[:tokens].sum(1).topk(min(most, tokens)).indices.sort().values
            _put(signals, name, "token_frame", values[looking].flatten(), looking.tolist())
        else:
            raise ValueError(f"axes of {name!r} are {axes!r}; 'GT', 'GF', 'GTF' or 'F' is wanted.")


def settings_of(config: Any, model: nn.Module) -> dict[str, str]:
    """Return the model and the settings that define a method: its own fields and a few of TRL's."""
    names = [*PLAIN_SETTINGS, *config.method_settings()]
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    return {"model": os.path.basename(path.rstrip("/")) or path, **{name: str(getattr(config, name)) for name in names}}


def _put(
    signals: list[dict[str, Any]], name: str, kind: str, values: Tensor, tokens: Sequence[int] | None = None
) -> None:
    """Add a signal, or replace the one with its name and kind."""
    signal = {"name": name, "kind": kind, "values": rounded(values), "tokens": tokens}
    for index, other in enumerate(signals):
        if (other["name"], other["kind"]) == (name, kind):
            signals[index] = signal
            return
    signals.append(signal)


def rounded(values: Tensor) -> list[float]:
    """Round to four significant digits, for compression."""
    numbers = values.detach().double().cpu().numpy()
    size = np.abs(np.where(np.isfinite(numbers) & (numbers != 0), numbers, 1.0))
    unit = 10.0 ** (np.floor(np.log10(size)) - 3)
    return np.where(np.isfinite(numbers), np.round(numbers / unit) * unit, numbers).astype(np.float32).tolist()


def _media(prompt: PreparedPrompt) -> list[tuple[str, Any]]:
    """Return kind and source of the prompt's media, in the order in which the model sees them."""
    if prompt.visual is not None and prompt.visual.visual_tokens:
        return [(block["type"], block[block["type"]]) for block in media_blocks(prompt.messages)]
    return [(kind, medium) for kind, media in media_columns(prompt.row).items() for medium in media]


def _medium(kind: str, source: Any) -> dict[str, Any]:
    """Return a reference to a medium: its path or URL if it has one, else a description without its content."""
    if isinstance(source, Mapping):
        inner = source.get("path") if source.get("bytes") is None else None
    else:
        inner = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if inner is not None and inner.startswith("data:"):
        return {"kind": kind, "source": None, "name": f"data: URI ({len(inner)} characters)"}
    return {"kind": kind, "source": inner, "name": describe(source)}


def _frames(prompt: PreparedPrompt) -> list[dict[str, Any]]:
    """Return one entry per temporal cell or image: its medium and the times of its raw frames."""
    if prompt.visual is None:
        return []
    frames, video = [], 0
    for number, (kind, _) in enumerate(_media(prompt)):
        if kind == "image":
            frames.append({"medium": number, "times": []})
            continue
        times, cells = prompt.frame_times[video], int(prompt.visual.video_grid_thw[video, 0])
        video += 1
        each = -(-len(times) // cells)  # the last cell of an odd clip repeats its frame
        frames += [{"medium": number, "times": times[cell * each : (cell + 1) * each]} for cell in range(cells)]
    return frames


def _spans(evidence: Any) -> list[list[float]] | None:
    """Return the [start, end] pairs of a column `evidence`; None for any other value."""
    if not isinstance(evidence, Sequence) or isinstance(evidence, str):
        return None
    pairs = all(isinstance(s, Sequence) and not isinstance(s, str) and len(s) == 2 for s in evidence)
    if not pairs or not all(isinstance(bound, int | float) for span in evidence for bound in span):
        return None
    return [[float(bound) for bound in span] for span in evidence]


def _text_of(messages: Any) -> str:
    """Return the text of a prompt, with roles if there are several messages."""
    if isinstance(messages, str):
        return messages
    texts = []
    for message in messages:
        content = message.get("content") or ""
        blocks = [content] if isinstance(content, str) else [block.get("text") or "" for block in content]
        text = "\n".join(block.strip() for block in blocks if block.strip())
        texts.append(text if len(messages) == 1 else f"{message.get('role')}: {text}")
    return "\n".join(texts)


def _cut(text: Any) -> str | None:
    return None if text is None else str(text)[:MOST_LETTERS]
