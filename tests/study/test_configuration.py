"""The configuration of a study: what it holds, and what is refused in one sentence."""

import re

import pytest
import yaml

from trl_perception.study.cells import cells_of
from trl_perception.study.configuration import read_study


def written(folder, **changes):
    """A file with a small study and changes; None removes a key."""
    study = {
        "methods": ["grpo/tiny", {"name": "hard", "recipe": "appo/tiny", "overrides": {"strategy": "hard"}}],
        "baseline": "grpo",
        "seeds": [1, 2],
        "models": ["tiny", "tiny_teacher"],
        "train": {"dataset_name": "synthetic", "synthetic": {"size": 16, "seed": 1}},
        "evaluation": {"data": "synthetic", "synthetic": {"size": 14, "seed": 5}},
        "evaluate_every": 2,
        "overrides": {"max_steps": 4, "learning_rate": 1e-3},
        "output": str(folder / "out"),
    } | changes
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in study.items() if value is not None}))
    return str(file)


def test_cells_are_methods_by_seeds_by_models_with_the_models_before_training(tmp_path):
    config = read_study(written(tmp_path), workers=2)
    cells = cells_of(config)
    assert len({cell.folder for cell in cells}) == len(cells) == 2 + 2 * 2 * 2
    assert [cell.method for cell in cells[:4]] == ["base", "base", "grpo", "hard"]
    assert cells[3].folder == tmp_path / "out/cells/hard/tiny/seed-1"
    recipe, evaluation = cells[3].settings["recipe"], cells[3].settings["evaluation"]
    assert (recipe["trainer"], recipe["strategy"], recipe["max_steps"], recipe["learning_rate"]) == (
        "appo",
        "hard",
        4,
        1e-3,
    )
    assert recipe["synthetic"] == {"size": 16, "seed": 1}
    # Media and length are the recipe's, data and rewards the study's.
    assert (evaluation["video_fps"], evaluation["max_new_tokens"], evaluation["dtype"]) == (4.0, 48, "float32")
    assert (evaluation["synthetic"], evaluation["rewards"]) == ({"size": 14, "seed": 5}, ["accuracy"])
    # A number that recipes alone would set differently for a cell is the study's.
    assert not {"seed", "output_dir", "model_name_or_path", "save_strategy"} & recipe.keys()


REFUSED = {
    "an unknown key": ({"method": ["grpo/tiny"]}, "Unknown key 'method' in the study .* Did you mean 'methods'?"),
    "a missing key": ({"seeds": None}, "has no seeds. Set seeds."),
    "a number for a list": ({"seeds": 3}, "seeds is 3 in the study .*; a list of whole numbers is wanted"),
    "an empty list": ({"models": []}, r"models is \[\] in the study"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds has 1 twice"),
    "a method twice": ({"methods": ["grpo/tiny", "grpo/tiny"]}, "methods has 'grpo' twice"),
    "an unknown baseline": ({"baseline": "gpro"}, "The baseline 'gpro' is none of the methods: grpo, hard."),
    "no data to evaluate on": ({"evaluation": {"split": "test"}}, "evaluation has no data. Set data"),
    "an unknown setting of the evaluation": (
        {"evaluation": {"data": "synthetic", "fps": 1}},
        "Unknown key 'fps' in evaluation",
    ),
    "a setting of the run among the data": ({"train": {"max_steps": 3}}, "Unknown key 'max_steps' in train"),
    "a seed in overrides": ({"overrides": {"max_steps": 4, "seed": 3}}, "overrides sets seed, .* Set seeds."),
    "data in overrides": ({"overrides": {"max_steps": 4, "synthetic": {}}}, "overrides sets synthetic, .* Set train"),
    "an unknown setting of a method": (
        {"methods": ["grpo/tiny", {"name": "x", "recipe": "appo/tiny", "overrides": {"stratgy": "hard"}}]},
        "The method x .* cannot be run: Unknown key 'stratgy' .* Did you mean 'strategy'?",
    ),
    "another evaluation for a method": (
        {"methods": ["grpo/tiny", {"name": "x", "recipe": "grpo/tiny", "overrides": {"video_fps": 2.0}}]},
        "grpo and x would be evaluated with different video_fps, 4.0 and 2.0. Set video_fps in evaluation",
    ),
    "an evaluation on the training rows": (
        {"evaluation": {"data": "synthetic", "split": "train", "synthetic": {"size": 14, "seed": 1}}},
        "evaluation.data is 'synthetic', which train names too, with the same rows",
    ),
    "a value that the evaluation refuses": (
        {"evaluation": {"data": "synthetic", "samples": 4}},
        "4 samples at temperature 0 would be the same completion",
    ),
    "a token in overrides": ({"overrides": {"max_steps": 4, "hub_token": "x"}}, "hub_token, which results would show"),
    "a trainer that is no path": (
        {"methods": ["grpo/tiny", {"name": "x", "recipe": "grpo/tiny", "trainer": "Mine"}]},
        "The method x has the trainer 'Mine'; the dotted path of a class is wanted",
    ),
    "a run without a number of steps": ({"overrides": {"max_steps": -1}}, "max_steps -1; .* Set max_steps."),
    "a name that is no folder": ({"methods": [{"name": "a/b", "recipe": "grpo/tiny"}]}, "A method has the name 'a/b'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_sentence(case, tmp_path):
    changes, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as error:
        read_study(written(tmp_path, **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_shipped_study_can_be_read():
    assert read_study("study/smoke").baseline == "grpo"
    with pytest.raises(
        FileNotFoundError,
        match=re.escape("study/smok, as a file or among those shipped: study/smoke. Did you mean 'study/smoke'?"),
    ):
        read_study("study/smok")
