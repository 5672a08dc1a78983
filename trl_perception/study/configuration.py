"""Reads the configuration of a study."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from ..cli.evaluate import FROM_RECIPE
from ..cli.preflight import check_training
from ..evaluation import EvaluationSettings
from ..recipe import nearest, read_recipe, recipes_folder, shipped_recipes

FOLDER = "study"  # of the shipped configurations, among the recipes
DATA = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_limit", "synthetic")
CONTROLLED = ("model_name_or_path", "seed", "output_dir", "resume_from_checkpoint", "push_to_hub")
CONTROLLED += ("save_strategy", "save_steps", "save_total_limit", "save_only_model", "eval_strategy", "eval_steps")
OF_THE_STUDY = ("data", "data_config", "split", "synthetic", "rewards")  # never taken over from a recipe
OF_A_CELL = ("model", "adapter", "revision", "output")
OF_EVALUATION = [f.name for f in fields(EvaluationSettings) if f.name not in OF_A_CELL]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Method:
    """A method of a study: its name in tables, the recipe's settings, and its evaluation's, both without those of a cell.

    Args: trainer: the dotted path of a subclass of the recipe's trainer, or None.
    """

    name: str
    trainer: str | None
    recipe: Mapping[str, Any]
    evaluation: Mapping[str, Any]


@dataclass(frozen=True)
class StudyConfig:
    """
    Configuration of a study.

    Args:
        methods: recipes by file or name, or mappings of `name`, `recipe`, `overrides` and `trainer`.
        baseline: the method that the others are compared with.
        seeds: the same for every method.
        models: `tiny`, paths or names on the Hub.
        train: the training data, as in a recipe.
        evaluation: settings of `trl-perception evaluate`; what is not set is the recipes'.
        overrides: settings of every run, over those of its recipe; a method's own overrides come last.
        evaluate_every: optimisation steps between two evaluations; the last step is always evaluated.
        target_reward: the training reward that "steps to reward" counts to.
        tuning: how the settings of the methods were chosen, in words, for table and page.
        output: the folder of the study.
        workers: cells that run at a time. threads: of each cell; by default the cores divided by the workers.
    """

    methods: Sequence[Method]
    baseline: str
    seeds: Sequence[int]
    models: Sequence[str]
    train: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    output: Path
    evaluate_every: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    target_reward: float | None = None
    tuning: str = "not stated"
    workers: int = 1
    threads: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what results depend on and what a reader is told, as JSON."""
        kept = [f.name for f in fields(self) if f.name not in ("methods", "output", "workers", "threads")]
        found = {name: getattr(self, name) for name in kept} | {"seeds": [*self.seeds], "models": [*self.models]}
        return {"methods": [method.name for method in self.methods]} | found


def read_study(name: str, *, output: str | None = None, workers: int | None = None) -> StudyConfig:
    """Read and check the configuration of a study, a YAML file or a shipped name such as `study/smoke`.

    Args: output, workers: replace those of the file.
    Errors: FileNotFoundError with the nearest name; ValueError for a missing, unknown or unusable key, and for a method whose
        recipe cannot be run.
    """
    file = _file(name)
    found = read_recipe(str(file))
    found |= {key: value for key, value in (("output", output), ("workers", workers)) if value is not None}
    known = {f.name: f for f in fields(StudyConfig)}
    _require_known(found, known, f"the study {file}")
    defaults = ("overrides", "target_reward", "tuning", "workers", "threads")
    if missing := [key for key in known if key not in (*found, *defaults)]:
        raise ValueError(f"The study {file} has no {missing[0]}. Set {missing[0]}.")
    _require_kinds(found, file)
    _require_known(found["train"], DATA, "train")
    _require_known(found["evaluation"], OF_EVALUATION, "evaluation")
    _require_free(found.get("overrides", {}), "overrides")
    if "data" not in found["evaluation"]:
        raise ValueError("evaluation has no data. Set data: 'synthetic', a local file or folder, or a Hub data set.")
    methods = [_method(entry, found) for entry in found["methods"]]
    names = [method.name for method in methods]
    for key, values in (("methods", names), ("seeds", found["seeds"]), ("models", found["models"])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{key} has {twice[0]!r} twice. Give each of {key} another name or number.")
    if found["baseline"] not in names:
        raise ValueError(f"The baseline {found['baseline']!r} is none of the methods: {', '.join(names)}.")
    _require_same_evaluation(methods)
    _require_held_out(found["train"], found["evaluation"])
    found["threads"] = found.get("threads") or max(1, (os.cpu_count() or 1) // found.get("workers", 1))
    lists = {key: tuple(found[key]) for key in ("seeds", "models")}
    return StudyConfig(**{**found, **lists, "methods": tuple(methods), "output": Path(found["output"]).expanduser()})


def _file(name: str) -> Path:
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    shipped = {f"{FOLDER}/{path.stem}": path for path in sorted((recipes_folder() / FOLDER).glob("*.yaml"))}
    if name not in shipped:
        raise FileNotFoundError(
            f"There is no study {name}, as a file or among those shipped: {', '.join(shipped)}.{nearest(name, shipped)}"
        )
    return shipped[name]


def _require_known(given: Mapping[str, Any], known, where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"Unknown key {key!r} in {where}.{nearest(key, known)} Known: {', '.join(known)}.")


def _require_kinds(found: Mapping[str, Any], file: Path) -> None:
    """Errors: ValueError for a value of another type, an empty list, or a number out of its bounds."""

    def whole(least: int):
        return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least

    def lists(of):
        return lambda value: isinstance(value, list) and value and all(map(of, value))

    text, mapping = (lambda value: isinstance(value, str) and value), (lambda value: isinstance(value, Mapping))
    checks = {
        "methods": (lists(lambda value: isinstance(value, str | Mapping)), "a list of recipes or mappings"),
        "seeds": (lists(whole(0)), "a list of whole numbers"),
        "models": (lists(text), "a list of names or paths"),
        **dict.fromkeys(("train", "evaluation", "overrides"), (mapping, "a mapping")),
        **dict.fromkeys(("baseline", "output", "tuning"), (text, "a text")),
        **dict.fromkeys(("evaluate_every", "workers"), (whole(1), "a number of 1 or more")),
        "threads": (whole(0), "a number of 0 or more"),
        "target_reward": (lambda value: isinstance(value, int | float) and not isinstance(value, bool), "a number"),
    }
    for key, (fits, wanted) in checks.items():
        if key in found and not fits(found[key]):
            raise ValueError(f"{key} is {found[key]!r} in the study {file}; {wanted} is wanted.")


def _require_free(overrides: Mapping[str, Any], where: str) -> None:
    for key in overrides:
        if key == "env" or key.endswith("_token"):
            raise ValueError(f"{where} sets {key}, which results would show. Set it in the environment of the command.")
        if key in CONTROLLED or key in DATA:
            others = {"model_name_or_path": "Set models", "seed": "Set seeds", "save_steps": "Set evaluate_every"}
            set_it = "Set train" if key in DATA else others.get(key, "Leave it out")
            raise ValueError(f"{where} sets {key}, which the study sets for all methods. {set_it}.")


def _method(entry: str | Mapping[str, Any], found: Mapping[str, Any]) -> Method:
    if isinstance(entry, str):
        entry = {"recipe": entry}
    _require_known(entry, ("name", "recipe", "overrides", "trainer"), "an entry of methods")
    recipe, trainer = entry.get("recipe"), entry.get("trainer")
    if not isinstance(recipe, str):
        raise ValueError(f"An entry of methods has the recipe {recipe!r}; a file or name such as grpo/tiny is wanted.")
    name = entry.get("name") or (recipe.split("/")[0] if recipe in shipped_recipes() else Path(recipe).stem)
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == "base":
        raise ValueError(
            f"A method has the name {name!r}; letters, digits, '.', '_' and '-' are wanted, but not 'base'."
        )
    if trainer is not None and not re.fullmatch(r"\w+(\.\w+)+", str(trainer)):
        raise ValueError(f"The method {name} has the trainer {trainer!r}; the dotted path of a class is wanted.")
    overrides = entry.get("overrides") or {}
    _require_free(overrides, f"The method {name}")
    settings = {key: value for key, value in read_recipe(recipe).items() if key not in (*CONTROLLED, *DATA)}
    settings |= {**found.get("overrides", {}), **found["train"], **overrides}
    with TemporaryDirectory() as folder:
        draft = Path(folder, "recipe.yaml")
        draft.write_text(yaml.safe_dump(settings))
        try:
            check_training(["--config", str(draft)])
        except ValueError as error:
            raise ValueError(f"The method {name} (recipe {recipe}) cannot be run: {error}") from error
    if not isinstance(steps := settings.get("max_steps"), int) or steps < 1:
        raise ValueError(
            f"The method {name} has max_steps {steps!r}; a study wants the number of steps. Set max_steps."
        )
    taken = {FROM_RECIPE[key]: value for key, value in settings.items() if key in FROM_RECIPE}
    evaluation = {key: value for key, value in taken.items() if key not in OF_THE_STUDY}
    evaluation = {"rewards": ["accuracy"], **evaluation, **found["evaluation"]}
    EvaluationSettings(**evaluation, model=found["models"][0], output=found["output"])  # refuses what it cannot use
    return Method(name, trainer, settings, evaluation)


def _require_same_evaluation(methods: Sequence[Method]) -> None:
    """Errors: ValueError where two methods would not be evaluated alike, naming the first setting."""
    first, *others = methods
    for other in others:
        for key in {**first.evaluation, **other.evaluation}:
            one, two = first.evaluation.get(key), other.evaluation.get(key)
            if one != two:
                raise ValueError(
                    f"{first.name} and {other.name} would be evaluated with different {key}, {one!r} and {two!r}. Set "
                    f"{key} in evaluation, or the recipes' setting in overrides."
                )


def _require_held_out(train: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Errors: ValueError where the evaluation would be on the training rows."""
    data, is_file = evaluation["data"], Path(evaluation["data"]).expanduser().is_file()
    splits = train.get("dataset_train_split", "train"), evaluation.get("split", "test")
    seeds = [(part.get("synthetic") or {}).get("seed", 0) for part in (train, evaluation)]
    if train.get("dataset_name") == data and (is_file or (splits[0] == splits[1] and seeds[0] == seeds[1])):
        raise ValueError(
            f"evaluation.data is {data!r}, which train names too, with the same rows. Set evaluation.data or evaluation.split "
            "to held-out rows."
        )
