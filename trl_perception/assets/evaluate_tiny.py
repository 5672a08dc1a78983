"""Accuracy of an embedded model on held-out rows: `python -m trl_perception.assets.evaluate_tiny --model tiny`."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..data import make_synthetic_dataset
from ..rewards.accuracy import accuracy_reward
from . import from_pretrained
from .batches import Medium, encode_prompts, load_medium, question

FORMAT = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)
IOU_THRESHOLD = 0.5
MODES = ("greedy", "sampled", "swapped")


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Mapping],
    media: Sequence[Medium],
    *,
    sample: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 64,
) -> list[str]:
    """One completion a row: greedy, or sampled at temperature 1 from the whole vocabulary."""
    model.eval()
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    how["suppress_tokens"] = [processor.image_token_id, processor.video_token_id]  # placeholders belong to prompts
    lengths = [(len(row["videos"]), len(row["images"]), len(question(row))) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    texts = [""] * len(rows)
    for start in tqdm(range(0, len(rows), batch_size), desc="sampled" if sample else "greedy", leave=False):
        chosen = order[start : start + batch_size]
        inputs = encode_prompts(processor, [rows[i] for i in chosen], [media[i] for i in chosen])
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **how)[:, inputs["input_ids"].shape[1] :]
        for index, text in zip(chosen, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[index] = text
    return texts


def score(rows: Sequence[Mapping], completions: Sequence[str]) -> list[float]:
    """Reward of each completion: 1 or 0, and for time questions the temporal IoU."""
    columns = {key: [row[key] for row in rows] for key in ("solution", "problem_type", "options")}
    return accuracy_reward([row["prompt"] for row in rows], list(completions), **columns)


def swap_media(rows: Sequence[Mapping], media: Sequence[Medium]) -> list[Medium]:
    """Every row sees the medium of the next row of its family that has one of the same kind."""
    groups: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row["family"], type(media[index])), []).append(index)
    swapped = list(media)
    for indices in groups.values():
        for here, there in zip(indices, [*indices[1:], indices[0]], strict=True):
            swapped[here] = media[there]
    return swapped


def evaluate(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[Mapping], media: Sequence[Medium], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Shares in [0, 1] by family and for "all".

    Returns: family -> `rows` (count), `greedy`, `sampled` and `swapped` (greedy, each row with another row's medium)
        accuracies, `reward` and `format` (mean reward and share in the right format, both sampled).
    """
    torch.manual_seed(seed)
    completions = {
        "greedy": complete(model, processor, rows, media),
        "sampled": complete(model, processor, rows, media, sample=True),
        "swapped": complete(model, processor, rows, swap_media(rows, media)),
    }
    rewards = {mode: torch.tensor(score(rows, completions[mode])) for mode in MODES}
    columns = {mode: (rewards[mode] >= IOU_THRESHOLD).float() for mode in MODES}
    columns["reward"] = rewards["sampled"].float()
    columns["format"] = torch.tensor([float(FORMAT.fullmatch(text) is not None) for text in completions["sampled"]])
    families = [row["family"] for row in rows]
    table = {}
    for family in [*dict.fromkeys(families), "all"]:
        chosen = torch.tensor([family in (name, "all") for name in families])
        table[family] = {"rows": int(chosen.sum())} | {
            key: values[chosen].mean().item() for key, values in columns.items()
        }
    return table


def as_markdown(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table of `evaluate` in Markdown, accuracies in percent."""
    keys = [*MODES, "reward", "format"]
    lines = ["| family | rows | " + " | ".join(keys) + " |", "|---|" + "---:|" * (len(keys) + 1)]
    for family, shares in table.items():
        lines.append(
            f"| {family} | {shares['rows']} | " + " | ".join(f"{100 * shares[key]:.1f}" for key in keys) + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="embedded name, folder or hub id")
    parser.add_argument("--rows", type=int, default=700, help="held-out rows (default: 700)")
    parser.add_argument("--medium", default="video", choices=("video", "image", "mixed"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the rows and of the sampling (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--data-dir", help="where the rows are kept (default: runs/synthetic/test-MEDIUM-SEED-ROWS)")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    folder = options.data_dir or f"runs/synthetic/test-{options.medium}-{options.seed}-{options.rows}"
    dataset = make_synthetic_dataset(folder, size=options.rows, seed=options.seed, split="test", medium=options.medium)
    rows = list(dataset)
    model, processor = from_pretrained(options.model)
    table = evaluate(model, processor, rows, [load_medium(row) for row in rows], options.seed)
    sys.stdout.write(as_markdown(table))


if __name__ == "__main__":
    main()
