"""One recorded group: what was noted of it, cut to size, and the row that it becomes in a record."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...batch import Group
from ...media import PreparedPrompt, media_blocks, media_columns
from ...media.errors import describe

# What bounds a row: 8 completions at every bound, with weights and five signals, take some 0.33 MB on disk.
MOST_TOKENS = 1024  # of a completion
MOST_LETTERS = 16_384  # of a prompt or a completion
MOST_TOKEN_FRAMES = 8192  # numbers that say where one completion's tokens look: those that look most are kept

PLAIN_SETTINGS = ("loss_type", "num_generations", "num_iterations", "learning_rate", "temperature", "beta", "max_steps")


class RecordBuilder:
    """A group and the signals noted of it so far; a later note of a name replaces an earlier one.

    Args:
        group: the group. start: the place of its first completion among the rows of the rollout.
    """

    def __init__(self, group: Group, start: int):
        self.group: Group | None = group
        self.start = start
        self.lengths = group.attention_mask.sum(dim=1).tolist()
        self.mask = group.completion_mask.cpu()
        self._row: Mapping[str, Any] | None = None
        self._of_group: dict[tuple[str, str], dict] = {}
        self._of_completion: list[dict[tuple[str, str], dict]] = [{} for _ in self.lengths]

    def state(self, step: int, tokenizer: PreTrainedTokenizerBase, reward_weights: Tensor) -> dict[str, Any]:
        """The draft as JSON, for a checkpoint between two updates on its rollout."""
        row = self.row(step, tokenizer, reward_weights)
        return {"start": self.start, "mask": self.mask.int().tolist(), "row": row}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "RecordBuilder":
        """A draft that was kept. It has no group any more: later notes come by the rows of a micro-batch."""
        draft, row = cls.__new__(cls), state["row"]
        draft.group, draft.start, draft._row = None, state["start"], row
        draft.mask = torch.tensor(state["mask"], dtype=torch.bool)
        draft.lengths = [completion["length"] for completion in row["completions"]]
        draft._of_group = _by_name(row["signals"])
        draft._of_completion = [_by_name(completion["signals"]) for completion in row["completions"]]
        for noted, completion in zip(draft._of_completion, row["completions"], strict=True):
            if completion["token_weights"] is not None:
                weights = {
                    "name": "token_weights",
                    "kind": "token",
                    "values": completion["token_weights"],
                    "tokens": None,
                }
                noted["token_weights", "token"] = weights
        return draft

    def note_frames(self, name: str, values: Tensor) -> None:
        """Keep (F,) values of the whole group."""
        kind = "frame_mask" if values.dtype == torch.bool else "frame"
        self._of_group[name, kind] = _signal(name, kind, values)

    def log_signal(self, completion: int, name: str, values: Tensor, axes: str) -> None:
        """Keep one completion's (T,), (F,) or (T,F) values, for axes "GT", "GF" or "GTF"."""
        keep, values = self._of_completion[completion], values.detach().cpu()
        tokens = min(self.lengths[completion], MOST_TOKENS)
        if axes == "GT":
            kind = "mask" if values.dtype == torch.bool else "token"
            keep[name, kind] = _signal(name, kind, values[:tokens])
        elif axes == "GF":
            keep[name, "frame"] = _signal(name, "frame", values)
        elif axes == "GTF" and not values.size(1):
            return  # a prompt without frames
        elif axes == "GTF":
            counted = self.mask[completion, : len(values)]
            keep[name, "frame"] = _signal(name, "frame", values[counted].mean(0) if counted.any() else 0 * values[0])
            most = max(1, MOST_TOKEN_FRAMES // max(1, values.size(1)))
            looking = values[:tokens].sum(1).topk(min(most, tokens)).indices.sort().values
            keep[name, "token_frame"] = _signal(name, "token_frame", values[looking].flatten(), looking.tolist())
        else:
            raise ValueError(f"axes of {name!r} are {axes!r}; 'GT', 'GF', 'GTF' or 'F' is wanted.")

    def row(self, step: int, tokenizer: PreTrainedTokenizerBase, reward_weights: Tensor) -> dict[str, Any]:
        """The group as a row of [`trl_perception.reports.rollouts.SCHEMA`]."""
        if self._row is not None:
            completions = [{**c, **self._noted(i)} for i, c in enumerate(self._row["completions"])]
            return {**self._row, "signals": list(self._of_group.values()), "completions": completions}
        prompt = self.group.prompt
        row = prompt.row
        return {
            "step": step,
            "sample": _cut("" if prompt.visual is None else prompt.visual.sample.removeprefix("sample ")),
            "prompt": _cut(_text_of(prompt.logged)),
            "media": [_medium(kind, source) for kind, source in _media(prompt)],
            "frames": _frames(prompt),
            "evidence": _spans(row.get("evidence")),
            "problem_type": _cut(row.get("problem_type")),
            "solution": _cut(row.get("solution")),
            "reward_names": list(self.group.rewards),
            "signals": list(self._of_group.values()),
            "completions": [self._completion(i, tokenizer, reward_weights) for i in range(len(self.lengths))],
        }

    def _completion(self, i: int, tokenizer: PreTrainedTokenizerBase, reward_weights: Tensor) -> dict[str, Any]:
        length = self.lengths[i]
        ids = self.group.completion_ids[i, :length].tolist()
        rewards = [float(values[i]) for values in self.group.rewards.values()]
        return {
            "text": _cut(tokenizer.decode(ids, skip_special_tokens=True)),
            "tokens": [tokenizer.decode([token]) for token in ids[:MOST_TOKENS]],
            "token_ids": ids[:MOST_TOKENS],
            "mask": self.mask[i, : min(length, MOST_TOKENS)].tolist(),
            "length": length,
            "rewards": [None if np.isnan(reward) else reward for reward in rewards],
            "reward": float(np.nansum(np.array(rewards) * reward_weights.cpu().numpy())),
            "advantage": float(self.group.advantages[i]),
            **self._noted(i),
        }

    def _noted(self, i: int) -> dict[str, Any]:
        signals = dict(self._of_completion[i])
        weights = signals.pop(("token_weights", "token"), None)
        return {"token_weights": weights and weights["values"], "signals": list(signals.values())}


def settings_of(config: Any, model: nn.Module) -> dict[str, str]:
    """The model and the settings that say what a method did: its own fields and a few of TRL's."""
    names = [*PLAIN_SETTINGS, *config.method_settings()]
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    return {"model": os.path.basename(path.rstrip("/")) or path, **{name: str(getattr(config, name)) for name in names}}


def _by_name(signals: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict]:
    return {(signal["name"], signal["kind"]): signal for signal in signals}


def _signal(name: str, kind: str, values: Tensor, tokens: Sequence[int] | None = None) -> dict[str, Any]:
    return {"name": name, "kind": kind, "values": rounded(values), "tokens": tokens}


def rounded(values: Tensor) -> list[float]:
    """Four significant digits, which compress."""
    numbers = values.detach().double().cpu().numpy()
    size = np.abs(np.where(np.isfinite(numbers) & (numbers != 0), numbers, 1.0))
    unit = 10.0 ** (np.floor(np.log10(size)) - 3)
    return np.where(np.isfinite(numbers), np.round(numbers / unit) * unit, numbers).astype(np.float32).tolist()


def _media(prompt: PreparedPrompt) -> list[tuple[str, Any]]:
    """Kind and source of the prompt's media, in the order in which the model sees them."""
    if prompt.visual is not None and prompt.visual.visual_tokens:
        return [(block["type"], block[block["type"]]) for block in media_blocks(prompt.messages)]
    return [(kind, medium) for kind, media in media_columns(prompt.row).items() for medium in media]


def _medium(kind: str, source: Any) -> dict[str, Any]:
    """How a medium is referred to: by its path or URL where it has one; content itself is described, never kept."""
    if isinstance(source, Mapping):
        inner = source.get("path") if source.get("bytes") is None else None
    else:
        inner = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if inner is not None and inner.startswith("data:"):
        return {"kind": kind, "source": None, "name": f"data: URI ({len(inner)} characters)"}
    return {"kind": kind, "source": inner, "name": describe(source)}


def _frames(prompt: PreparedPrompt) -> list[dict[str, Any]]:
    """One entry a temporal cell or image: its medium and the times of the raw frames in it."""
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
    """[start, end] pairs of a column `evidence`; None where it holds anything else."""
    if not isinstance(evidence, Sequence) or isinstance(evidence, str):
        return None
    pairs = all(isinstance(s, Sequence) and not isinstance(s, str) and len(s) == 2 for s in evidence)
    if not pairs or not all(isinstance(bound, int | float) for span in evidence for bound in span):
        return None
    return [[float(bound) for bound in span] for span in evidence]


def _text_of(messages: Any) -> str:
    """The words of a prompt, with the speaker's role where there are several messages."""
    if isinstance(messages, str):
        return messages
    said = []
    for message in messages:
        content = message.get("content") or ""
        blocks = [content] if isinstance(content, str) else [block.get("text") or "" for block in content]
        text = "\n".join(block.strip() for block in blocks if block.strip())
        said.append(text if len(messages) == 1 else f"{message.get('role')}: {text}")
    return "\n".join(said)


def _cut(text: Any) -> str | None:
    return None if text is None else str(text)[:MOST_LETTERS]
