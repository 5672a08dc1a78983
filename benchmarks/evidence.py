"""Do the methods' signals find the evidence? `python -m benchmarks.evidence [--json FILE]`.

The synthetic clips say which seconds hold the answer. This compares the signals on rollouts of a model, without any training:

- APPO: whether the selected frames hold evidence frames, against as many frames drawn at random;
- PGPO: visual dependency of answer tokens and of template tokens, and of questions that text alone answers;
- Video-KTR: |log p in order - log p shuffled| on questions of order or time and on static ones;
- RAL: the share of attention to the video that falls on evidence frames, in right and in wrong completions.

Every number is reported, with its sample count.
"""

import argparse
import json
import math
import re
import statistics
import tempfile
from collections import defaultdict
from itertools import chain
from pathlib import Path

import torch
from datasets import Dataset

from trl_perception import GRPOVideoConfig, GRPOVideoTrainer
from trl_perception.data import make_synthetic_dataset
from trl_perception.media.frames import token_frames
from trl_perception.modeling import AttentionTap, attention_rows, media_masked, pooled_rows, seeded, shuffled
from trl_perception.objectives import select_frames, visual_dependency
from trl_perception.rewards import accuracy_reward

TEMPORAL = ("event_order", "event_time", "scene_color", "flash_count")
STATIC = ("static",)
TAGS = re.compile(r"</?(?:think|answer)>")


class Probe(GRPOVideoTrainer):
    """Samples and reads every signal of each group without learning (learning rate 0).

    `found` has the values of each signal by the id of the row.
    """

    def __init__(self, *args, **kwargs):
        self.found = defaultdict(lambda: defaultdict(list))
        super().__init__(*args, **kwargs)

    def token_weights(self, group):
        row, width = group.prompt.row, group.completion_ids.size(1)
        rewards = group.rewards["accuracy_reward"]
        if not group.visual.visual_tokens:
            return None
        logps, _ = self.score(group)
        self._pgpo(group, row, logps, width)
        self._ktr(group, row, logps)
        evidence = evidence_cells(group.prompt, row["evidence"])
        cells = int(group.visual.video_grid_thw[0, 0])
        if 0 < len(evidence) < cells:
            self._attention(group, row, rewards, evidence, cells, width)
        return None

    def _pgpo(self, group, row, logps, width):
        view = media_masked(self.model, group.prompt_ids, group.visual, width)
        dependency = visual_dependency(logps, self.score(group, view)[0])
        for ids, values, mask in zip(group.completion_ids, dependency, group.completion_mask, strict=True):
            kinds = token_kinds(self.processing_class.tokenizer, ids[mask].tolist())
            for kind, value in zip(kinds, values[mask].tolist(), strict=True):
                question = "text-only question" if row["family"] == "text_only" else "visual question"
                self.found[f"pgpo/{question}/{kind} tokens"][row["id"]].append(value)

    def _ktr(self, group, row, logps):
        view = shuffled(group.prompt_ids, group.visual, seeded(0, self.state.global_step, group.prompt_ids))
        if view is None:
            return
        delta = (logps - self.score(group, view)[0]).abs()
        kind = "temporal" if row["family"] in TEMPORAL else "static" if row["family"] in STATIC else row["family"]
        self.found[f"ktr/{kind} question"][row["id"]] += delta[group.completion_mask].tolist()

    def _attention(self, group, row, rewards, evidence, cells, width):
        frames = torch.cat([token_frames(group.visual), torch.full((width,), -1)])
        predictors = slice(-width - 1, -1)

        def reduce(layers, mask):
            pooled = pooled_rows(layers, predictors, mask, frames)
            last = attention_rows(layers[-1], slice(-width, None), mask)
            share = torch.stack([last[..., frames == frame].sum(-1) for frame in range(cells)], -1)
            return pooled, share

        with AttentionTap(self.model, reduce, layers=3) as tap:
            self.score(group)
        pooled, share = (torch.cat(parts) for parts in zip(*tap.results, strict=True))
        selected = select_frames(
            pooled,
            rewards,
            group.completion_mask,
            top_tokens=15,
            top_frames=3,
            reward_threshold=0.5,
            strategy="soft",
        ).nonzero()[:, 0]
        count = len(selected)
        self.found["appo/groups without a success, no frame"][row["id"]].append(float(count == 0))
        if 0 < count < cells:
            hits = sum(frame in evidence for frame in selected.tolist())
            self.found["appo/selection holds an evidence frame"][row["id"]].append(float(hits > 0))
            chance = 1 - math.comb(cells - len(evidence), count) / math.comb(cells, count)
            self.found["appo/... by chance"][row["id"]].append(chance)
            self.found["appo/share of evidence frames selected"][row["id"]].append(hits / len(evidence))
            self.found["appo/... by chance (share)"][row["id"]].append(count / cells)
        on_video = share.sum(-1)
        on_evidence = share[..., sorted(evidence)].sum(-1) / on_video.clamp(min=1e-9)
        for value, mask, reward in zip(on_evidence, group.completion_mask, rewards.tolist(), strict=True):
            outcome = "right" if reward >= 0.5 else "wrong"
            self.found[f"ral/attention on evidence, {outcome} completions"][row["id"]].append(value[mask].mean().item())
        self.found["ral/... if attention were even"][row["id"]].append(len(evidence) / cells)


def evidence_cells(prompt, spans) -> set[int]:
    """Temporal cells (two frames each) that overlap the evidence spans; empty without exactly one video."""
    if len(prompt.frame_times) != 1 or not spans:
        return set()
    (times,) = prompt.frame_times
    step = times[1] - times[0]
    cells = [(times[i], times[min(i + 1, len(times) - 1)] + step) for i in range(0, len(times), 2)]
    return {i for i, (a, b) in enumerate(cells) for start, end in spans if min(b, end) - max(a, start) > 1e-6}


def token_kinds(tokenizer, ids) -> list[str]:
    """For each token: "answer" within the answer tags, "template" on a tag or special token, "thought" elsewhere."""
    pieces = [tokenizer.decode([token]) for token in ids]
    text = "".join(pieces)
    kinds, at = [], 0
    tags = [match.span() for match in TAGS.finditer(text)]
    answer = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    inside = answer.span(1) if answer else (len(text), len(text))
    for piece in pieces:
        start, end = at, at + len(piece)
        at = end
        if any(start < b and a < end for a, b in tags) or piece.startswith("<|"):
            kinds.append("template")
        elif inside[0] <= start and end <= inside[1]:
            kinds.append("answer")
        else:
            kinds.append("thought")
    return kinds


def video_rows(folder: str, size: int, seed: int) -> Dataset:
    """The rows with a clip among `size` synthetic ones."""
    rows = make_synthetic_dataset(folder, size=size, split="evidence", seed=seed)
    return Dataset.from_list([row for row in rows.to_list() if row["videos"]], features=rows.features)


def signals(model: str, rows: Dataset, generations: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """The values of each signal by the id of a row, on rollouts of a model."""
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOVideoConfig(
            folder,
            per_device_train_batch_size=8 * generations,
            num_generations=generations,
            max_completion_length=48,
            video_fps=4.0,
            video_max_frames=16,
            learning_rate=0.0,
            max_steps=len(rows) // 8,
            gradient_checkpointing=False,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            seed=seed,
        )
        probe = Probe(model=model, reward_funcs=accuracy_reward, args=config, train_dataset=rows)
        probe.train()
    return probe.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=280)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = video_rows(folder, options.prompts, options.seed)
        found = signals(options.model, rows, options.generations, options.seed)
    values = {name: list(chain.from_iterable(of_rows.values())) for name, of_rows in sorted(found.items())}
    table = {name: {"mean": statistics.fmean(one), "count": len(one)} for name, one in values.items()}
    width = max(map(len, table))
    for name, entry in table.items():
        print(f"{name:<{width}}  {entry['mean']:8.4f}  (n = {entry['count']:,})")
    if options.json:
        settings = {
            "model": options.model,
            "prompts": len(rows),
            "generations": options.generations,
            "seed": options.seed,
        }
        options.json.write_text(json.dumps({"settings": settings, "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
