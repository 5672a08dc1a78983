"""Checks the settings of a run without torch, before its slow import.

Settings that are not checked here are checked where they are used.
"""

import ast
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from ..assets import model_path
from ..data.names import require_dataset
from ..data.templates import get_template
from ..recipe import (
    config_apart,
    given,
    read_recipe,
    recipe_path,
    require_known,
    require_trainer,
    require_types,
    trainer_name,
)
from ..rewards.registry import get_reward, split_names
from .errors import PACKAGE, unknown_option

INHERITED = (
    Path("transformers/training_args.py"),
    *(Path(f"trl/trainer/{name}_config.py") for name in ("base", "grpo", "model")),
)
"""Files that declare the settings of other packages; a test compares them with the classes."""


def check_training(args: Sequence[str]) -> None:
    """Check recipe, trainer, keys and their types, data set, template, rewards and model of `trl-perception train`.

    Errors: ValueError or FileNotFoundError, as the run itself would raise it.
    """
    args = config_apart(args)
    if not args:
        raise ValueError("No recipe. Name one, such as --config grpo/tiny; `trl-perception recipes` lists them.")
    if not args[0].startswith("-"):
        raise ValueError(f"The command line has stray values [{args[0]!r}]; every value follows a --key.")
    recipe = read_recipe(args[args.index("--config") + 1]) if "--config" in args else {}
    name = trainer_name(args, recipe)
    require_trainer(name, trainer_names())
    said = given(args)
    hints = training_hints(name)
    require_known(recipe, said, hints, name)
    require_types({key: value for key, value in recipe.items() if value is not None}, hints, {})
    for key, hint in hints.items():
        _require_number(key, said.get(key, ()), hint)
    check_values({**recipe, **said}, data="dataset_name", rewards="reward_funcs", model="model_name_or_path")


def check_evaluation(args: Sequence[str]) -> None:
    """Check options, recipe, data, template, rewards and model of `trl-perception evaluate`."""
    known = {
        *declared_fields([PACKAGE / "evaluation" / "settings.py"], "EvaluationSettings"),
        "recipe",
        "compare",
        "help",
    }
    said = given(args)
    for key in said:
        if key not in known and key.removeprefix("no_") not in known:
            raise ValueError(unknown_option(f"--{key.replace('_', '-')}", [f"--{k.replace('_', '-')}" for k in known]))
    for name in said.get("recipe", ()):
        recipe_path(name)
    check_values(said, data="data", rewards="rewards", model="model")


def check_values(settings: Mapping[str, Any], *, data: str, rewards: str, model: str) -> None:
    """Check names and paths in settings of one or several texts; dotted paths of rewards are not imported."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    texts = {key: [text for text in values if isinstance(text, str)] for key, values in lists.items()}
    for key, check in ((data, require_dataset), ("prompt_template", get_template), (model, model_path)):
        for text in texts.get(key, ()):
            check(text)
    for text in split_names(texts.get(rewards, ())):
        if "." not in text.partition("(")[0]:
            get_reward(text)


def require_folder(name: str) -> None:
    """Errors: FileNotFoundError if a run's folder does not exist."""
    if not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"{name} is no folder (looked from {Path.cwd()}). Name the output_dir of a run.")


def trainer_names() -> dict[str, str]:
    """Return `TRAINERS` with class names, read from the sources: each class has its method's name in `method`."""
    names = {}
    for file in sorted((PACKAGE / "trainers").glob("*_trainer.py")):
        for node in _classes_in(file).values():
            assigned = [line for line in getattr(node, "body", ()) if isinstance(line, ast.Assign)]
            names |= {line.value.value: node.name for line in assigned if line.targets[0].id == "method"}
    return names


def training_hints(trainer: str) -> dict[str, Any]:
    """Return all settings of a trainer and their types: of its config, of `ModelConfig` and of `TrainArguments`."""
    ours = [PACKAGE / "train.py", *(PACKAGE / "trainers").glob("*_config.py")]
    files = [*ours, *(Path(find_spec(file.parts[0]).origin).parents[1] / file for file in INHERITED)]
    config = trainer_names()[trainer].removesuffix("Trainer") + "Config"
    return declared_fields(files, "ModelConfig", config, "TrainArguments")


def declared_fields(files: Iterable[Path], *names: str) -> dict[str, Any]:
    """Return the fields of classes and their bases, with types, read from Python files without importing them.

    A type is Any unless it consists of types of Python and `typing`.
    """
    classes = {name: node for file in files for name, node in _classes_in(file).items()}

    def of(name: str) -> dict[str, Any]:
        if name not in classes:
            return {}
        hints = {key: hint for base in classes[name].bases for key, hint in of(ast.unparse(base)).items()}
        fields = (node for node in classes[name].body if isinstance(node, ast.AnnAssign))
        return hints | {ast.unparse(field.target): _hint(ast.unparse(field.annotation)) for field in fields}

    return {key: hint for name in names for key, hint in of(name).items()}


@cache
def _classes_in(file: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}


def _hint(annotation: str) -> Any:
    try:
        return eval(annotation, vars(typing).copy())
    except (NameError, TypeError):
        return Any


def _require_number(key: str, values: Sequence[str], hint: Any) -> None:
    """Reject text for a number, as argparse does later."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    if len(kinds) != 1 or kinds[0] not in (int, float) or len(values) != 1:
        return
    try:
        kinds[0](values[0])
    except ValueError:
        raise ValueError(f"--{key} is {values[0]!r}; {kinds[0].__name__} is wanted.") from None
