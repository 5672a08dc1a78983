"""Training a very small embedded model from scratch."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from trl_perception.assets import from_pretrained
from trl_perception.assets.batches import length_batches, load_medium
from trl_perception.assets.evaluate_tiny import swap_media
from trl_perception.assets.train_tiny import (
    TinyRecipe,
    fresh_batches,
    learning_rate_factor,
    main,
    partly_swapped,
    read_recipe,
    train,
)
from trl_perception.data import make_synthetic_dataset

RECIPES = Path(__file__).parents[2] / "recipes" / "sft"


def small(tmp_path, **changes):
    values = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    values |= {"output": str(tmp_path / "model"), "data_dir": str(tmp_path / "data"), "threads": 1}
    values |= {"train_rows": 42, "validation_rows": 7, "test_rows": 7, "max_steps": 3, "batch_size": 6}
    return values | {"warmup_steps": 1, "eval_every": 3, "stop_accuracy": 1.0} | changes


def with_text_keys(row):
    """A row as a data set returns it: every block of a prompt has a text."""
    prompt = [{**turn, "content": [{"text": None, **block} for block in turn["content"]]} for turn in row["prompt"]]
    return {**row, "prompt": prompt}


def test_recipes_are_read():
    tiny, teacher = (read_recipe(RECIPES / name) for name in ("tiny.yaml", "tiny_teacher.yaml"))
    assert Path(tiny.output).name == "tiny"
    assert Path(teacher.output).name == "tiny_teacher"
    assert teacher.processor == "tiny"
    assert teacher.stop_accuracy == 1.0 > tiny.stop_accuracy
    pretrained, longer, study = (read_recipe(RECIPES / f"study{name}.yaml") for name in ("_pretrained", "_teacher", ""))
    assert (
        (pretrained.seed, pretrained.train_rows) == (longer.seed, longer.train_rows) == (pretrained.seed, None)
    )  # one tokenizer
    assert longer.max_steps > pretrained.max_steps
    assert study.model == pretrained.output
    assert study.hallucinated > 0


@pytest.mark.parametrize(
    ("changes", "named"), [({"learning_rat": 1}, "unknown keys learning_rat"), ({}, "lacks the keys seed")]
)
def test_a_recipe_with_wrong_keys_is_refused(tmp_path, changes, named):
    values = small(tmp_path, **changes)
    if not changes:
        del values["seed"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=named):
        read_recipe(tmp_path / "recipe.yaml")


def test_the_command_writes_a_model_that_loads(tmp_path):
    from trl_perception.assets import from_pretrained

    values = small(tmp_path, train_rows=None, medium="video", model="tiny", hallucinated=0.4)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    main(["--config", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "elsewhere")])
    model, processor = from_pretrained(str(tmp_path / "elsewhere"))
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    for words in ("| all | 7 |", "trained from tiny on", "40% of the rows", f"--model {tmp_path / 'elsewhere'}\n"):
        assert words in card


def test_rows_that_are_drawn_are_those_of_a_written_data_set(tmp_path):
    """Drawn rows are the training split as it would be on disk, each of them once; clips differ by their codec alone."""
    recipe = TinyRecipe(**small(tmp_path, train_rows=None, medium="video", batch_size=2))
    written = make_synthetic_dataset(tmp_path / "written", size=32, seed=recipe.seed, split="train")
    processor = from_pretrained("tiny")[1]
    drawn = {}
    for rows, media in itertools.islice(fresh_batches(recipe, processor), 16):
        drawn |= {row["id"]: (row, medium) for row, medium in zip(rows, media, strict=True)}
    assert list(written["id"]) == sorted(drawn)
    for row in written:
        other, medium = drawn[row["id"]]
        assert (row["prompt"], row["solution"], row["reasoning"]) == tuple(
            with_text_keys(other)[key] for key in ("prompt", "solution", "reasoning")
        )
        decoded = load_medium(row)
        assert type(decoded) is type(medium)
        if decoded is not None:
            assert (decoded.fps, decoded.indices, decoded.total_frames) == (
                medium.fps,
                medium.indices,
                medium.total_frames,
            )
            assert torch.equal(decoded.times, medium.times)
            assert (decoded.frames.float() - medium.frames.float()).abs().mean() < 8


def test_a_recipe_of_drawn_rows_trains(tmp_path):
    model, processor, steps = train(TinyRecipe(**small(tmp_path, train_rows=None, medium="video")))
    assert steps == 3
    assert len(processor.tokenizer) == model.config.text_config.vocab_size


@pytest.mark.slow
def test_training_is_reproducible_and_learns(tmp_path):
    recipe = TinyRecipe(**small(tmp_path))
    runs = [train(recipe)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    start = train(TinyRecipe(**small(tmp_path, learning_rate=0.0, weight_decay=0.0)))[0].state_dict()
    moved = [name for name in start if not torch.equal(start[name], runs[0][name])]
    assert len(moved) == len(start)  # every weight has a gradient, including the vision tower's


def test_a_model_is_trained_further_with_its_own_processor(tmp_path):
    changes = {"train_rows": None, "medium": "video", "learning_rate": 0.0, "model": "tiny", "hallucinated": 0.5}
    model, processor, _ = train(TinyRecipe(**small(tmp_path, **changes)))
    tiny, its_processor = from_pretrained("tiny")
    assert all(torch.equal(weight, tiny.state_dict()[name]) for name, weight in model.state_dict().items())
    assert processor.tokenizer.get_vocab() == its_processor.tokenizer.get_vocab()


def test_rows_that_are_learned_again_are_swapped_too(tmp_path):
    runs = [train(TinyRecipe(**small(tmp_path, hallucinated=share)))[0].state_dict() for share in (0.0, 0.9)]
    assert any(not torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


def test_a_share_of_the_rows_is_shown_clips_of_others():
    rows, media = [{"family": "ab"[number % 2]} for number in range(1000)], [*map(str, range(999)), None]
    shown = partly_swapped(rows, media, 0.4, np.random.default_rng(0))
    changed = [place for place in range(1000) if shown[place] != media[place]]
    assert 350 < len(changed) < 450
    assert sorted(map(str, shown)) == sorted(map(str, media))  # each clip once
    assert all(int(shown[place]) % 2 == place % 2 for place in changed)
    assert shown[-1] is None
    assert partly_swapped(rows, media, 0.0, np.random.default_rng(0)) == media


def test_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    recipe = TinyRecipe(**small(tmp_path, max_steps=12, warmup_steps=2))
    # steps 0 and 1 warm up to 1; step 7 is half way from 2 to 12, where the cosine is at one half
    factors = [learning_rate_factor(step, recipe) for step in (0, 1, 2, 7, 12)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_batches_hold_every_row_once_an_epoch_and_rows_alike_in_length():
    lengths = [9, 1, 5, 1, 9, 5, 9, 1, 5, 5]
    batches = length_batches(lengths, 3, torch.Generator().manual_seed(0))
    # 10 rows in batches of 3: four batches an epoch; sorted lengths are 1 1 1 | 5 5 5 | 5 9 9 | 9
    epoch = [next(batches) for _ in range(4)]
    assert sorted(index for batch in epoch for index in batch) == list(range(10))
    assert sorted(sorted(lengths[i] for i in batch) for batch in epoch) == [[1, 1, 1], [5, 5, 5], [5, 9, 9], [9]]


def test_swapped_media_stay_within_family_and_kind():
    rows = [{"family": name} for name in ("a", "a", "b", "a", "b", "a")]
    media = ["one", "two", "three", 4, "five", "six"]
    # family a has clips one, two, six in a ring; its lone 4 is of another kind and keeps its place
    assert swap_media(rows, media) == ["two", "six", "five", 4, "three", "one"]
