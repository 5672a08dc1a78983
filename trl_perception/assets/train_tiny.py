"""Train an embedded model from nothing: `python -m trl_perception.assets.train_tiny --config recipes/sft/tiny.yaml`."""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from tqdm import tqdm
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from ..data import make_synthetic_dataset
from ..data.synthetic import draw_row, families_of
from ..data.synthetic_spec import SceneSettings
from ..modeling import apply_position_rule
from . import from_pretrained, model_path
from .batches import Medium, as_medium, encode_examples, length_batches, load_medium, question
from .evaluate_tiny import IOU_THRESHOLD, as_markdown, complete, evaluate, score, swap_media
from .model_card import write_model_card
from .tiny_model import build_model, build_processor, build_tokenizer

Batches = Iterator[tuple[list[Mapping], list[Medium]]]

TOKENIZER_ROWS = 2000  # fixed, so that a recipe with more rows learns the same tokenizer


@dataclass(frozen=True)
class TinyRecipe:
    """A recipe of supervised training on reference completions.

    Args:
        output: folder of the finished model.
        data_dir: folder of the clips and images, made on first use.
        seed: of the rows, the initial weights and the order of the batches.
        medium: "video", "image" or "mixed".
        train_rows: rows to learn from, again and again; None for rows that are drawn for each step and used once.
        validation_rows, test_rows: rows to stop by, and to report on.
        processor: None learns a tokenizer from the training rows; a name or folder reuses that model's processor.
        model: None starts from random weights; a name or folder from that model's.
        hallucinated: share of the training rows with a clip that are shown the clip of another row of their family. The model learns to
            speak from what is common, not from what is there, in about that share of its answers.
        max_steps: steps of the cosine schedule; training may stop earlier.
        batch_size: rows a step.
        learning_rate: at the top of the schedule, after `warmup_steps`.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to it.
        stop_accuracy: greedy accuracy on the validation rows, in [0, 1], that ends training; 1.0 for never.
        eval_every: steps between two looks at the validation rows.
        threads: CPU threads.
    """

    output: str
    data_dir: str
    seed: int
    medium: str
    train_rows: int | None
    validation_rows: int
    test_rows: int
    max_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    stop_accuracy: float
    eval_every: int
    processor: str | None = None
    model: str | None = None
    hallucinated: float = 0.0
    threads: int = 2


def read_recipe(path: str | Path) -> TinyRecipe:
    """The recipe in a YAML file. Unknown and missing keys are refused by name."""
    values = yaml.safe_load(Path(path).read_text())
    known = {field.name for field in fields(TinyRecipe)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path} has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if missing := sorted(known - {"processor", "model", "hallucinated", "threads"} - set(values)):
        raise ValueError(f"{path} lacks the keys {', '.join(missing)}")
    return TinyRecipe(**values)


def train(recipe: TinyRecipe) -> tuple[PreTrainedModel, ProcessorMixin, int]:
    """Make the rows, learn the tokenizer, train; returns the model, its processor and the steps taken."""
    if recipe.train_rows is None:
        rows = [row for row, _ in drawn_rows(recipe, 0, TOKENIZER_ROWS)]
    else:
        rows, media = load_split(recipe, "train", recipe.train_rows)
    validation = load_split(recipe, "validation", recipe.validation_rows)
    if recipe.model is None:
        processor = make_processor(recipe, rows)
        model = build_model(processor.tokenizer, recipe.seed)
        apply_position_rule(model)
    else:
        model, processor = from_pretrained(recipe.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))

    if recipe.train_rows is None:
        batches = fresh_batches(recipe, processor)
    else:
        media = partly_swapped(rows, media, recipe.hallucinated, np.random.default_rng(recipe.seed))
        batches = epochs(recipe, processor, rows, media)
    accuracy = 0.0
    progress = tqdm(range(1, recipe.max_steps + 1), desc="training")
    for step in progress:
        loss = train_step(model, processor, *next(batches), optimizer, recipe)
        schedule.step()
        if step % recipe.eval_every == 0:
            accuracy = greedy_accuracy(model, processor, *validation)
        progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
        if accuracy >= recipe.stop_accuracy:
            break
    progress.close()
    return model, processor, step


def train_step(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Mapping],
    media: Sequence[Medium],
    optimizer: torch.optim.Optimizer,
    recipe: TinyRecipe,
) -> float:
    """One AdamW step on the mean cross-entropy of the completion tokens; returns that loss in nats."""
    model.train()
    inputs, labels = encode_examples(processor, rows, media)
    width = labels.shape[1]
    logits = model(**inputs, logits_to_keep=width + 1, use_cache=False).logits[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    return loss.item()


def learning_rate_factor(step: int, recipe: TinyRecipe) -> float:
    """Linear warmup, then half a cosine down to zero at max_steps."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def load_split(recipe: TinyRecipe, split: str, size: int) -> tuple[list[dict], list[Medium]]:
    """Rows of a split with their clips and images in memory."""
    folder = Path(recipe.data_dir) / split
    dataset = make_synthetic_dataset(folder, size=size, seed=recipe.seed, split=split, medium=recipe.medium)
    rows = list(dataset)
    return rows, [load_medium(row) for row in tqdm(rows, desc=f"decoding {split}")]


def epochs(recipe: TinyRecipe, processor: ProcessorMixin, rows: Sequence[Mapping], media: Sequence[Medium]) -> Batches:
    """Endless batches of the given rows."""
    lengths = [prompt_length(processor, row) for row in rows]
    for chosen in length_batches(lengths, recipe.batch_size, torch.Generator().manual_seed(recipe.seed)):
        yield [rows[i] for i in chosen], [media[i] for i in chosen]


def fresh_batches(recipe: TinyRecipe, processor: ProcessorMixin) -> Batches:
    """Endless batches of rows that are drawn, eight batches at a time, and used once; their clips have met no codec."""
    size = 8 * recipe.batch_size
    for start in itertools.count(step=size):
        rows, media = zip(*drawn_rows(recipe, start, size), strict=True)
        media = partly_swapped(rows, media, recipe.hallucinated, np.random.default_rng((recipe.seed, start)))
        yield from itertools.islice(epochs(recipe, processor, rows, media), 8)


def drawn_rows(recipe: TinyRecipe, start: int, size: int) -> list[tuple[dict, Medium]]:
    """Rows of the training split from `start` on, with their clips and images, written nowhere."""
    spec = {"seed": recipe.seed, "split": "train", "families": families_of(recipe.medium), "medium": recipe.medium}
    drawn = (draw_row(spec, SceneSettings(), start + number) for number in range(size))
    return [(row, as_medium(pixels)) for row, pixels in drawn]


def partly_swapped(
    rows: Sequence[Mapping], media: Sequence[Medium], share: float, generator: np.random.Generator
) -> list[Medium]:
    """The media of the rows, those of a random `share` of them swapped."""
    found = list(media)
    chosen = (generator.random(len(rows)) < share).nonzero()[0].tolist()
    swapped = swap_media([rows[place] for place in chosen], [media[place] for place in chosen])
    for place, medium in zip(chosen, swapped, strict=True):
        found[place] = medium
    return found


def make_processor(recipe: TinyRecipe, rows: Sequence[Mapping]) -> ProcessorMixin:
    if recipe.processor is not None:
        return AutoProcessor.from_pretrained(model_path(recipe.processor))
    texts = [f"{question(row)}\n{row['reasoning']}\n{row['solution']}" for row in rows[:TOKENIZER_ROWS]]
    return build_processor(build_tokenizer(["system\nuser\nassistant\n"] * 100 + texts))


def prompt_length(processor: ProcessorMixin, row: Mapping) -> int:
    """Roughly the prompt's tokens: its text, and more for a clip than for an image."""
    return len(processor.tokenizer(question(row))["input_ids"]) + 32 * len(row["videos"]) + 4 * len(row["images"])


def greedy_accuracy(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[Mapping], media: Sequence[Medium]
) -> float:
    rewards = score(rows, complete(model, processor, rows, media))
    return sum(reward >= IOU_THRESHOLD for reward in rewards) / len(rewards)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="recipe, such as recipes/sft/tiny.yaml")
    parser.add_argument("--output", help="folder of the finished model (default: the recipe's)")
    options = parser.parse_args(arguments)
    recipe = read_recipe(options.config)
    torch.set_num_threads(recipe.threads)

    model, processor, steps = train(recipe)
    rows, media = load_split(recipe, "test", recipe.test_rows)
    table = evaluate(model, processor, rows, media)
    output = Path(options.output or recipe.output)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    write_model_card(output, recipe_path=options.config, recipe=recipe, steps=steps, model=model, table=table)
    sys.stdout.write(f"{output}: {steps} steps\n{as_markdown(table)}")


if __name__ == "__main__":
    main()
