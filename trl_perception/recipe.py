"""Finds and reads recipes, and checks their keys and types."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml

ACCELERATE_CONFIGS = "accelerate_configs"
RECIPE_OF_RUN = "recipe.yaml"
FOUR_BIT = ("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant")


def recipe_path(name: str) -> Path:
    """Return the file of a recipe, given by path or by the name of a shipped one, such as `appo/tiny`.

    Errors: FileNotFoundError with the nearest name.
    """
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    wanted, shipped = name.removeprefix("recipes/").removesuffix(".yaml"), shipped_recipes()
    if wanted not in shipped:
        raise FileNotFoundError(
            f"There is no recipe {name}, as a file or among those shipped.{nearest(wanted, shipped)} `trl-perception recipes` "
            "lists them."
        )
    return shipped[wanted]


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package: {"appo/tiny": file, ...}."""
    others = (ACCELERATE_CONFIGS, "lmms_eval", "sft", "study")
    files = (path for path in sorted(recipes_folder().glob("*/*.yaml")) if path.parent.name not in others)
    return {f"{path.parent.name}/{path.stem}": path for path in files}


def recipe_of_run(model: str) -> Path | None:
    """Return the recipe saved with a run's weights, for its folder or a checkpoint; None for other models."""
    folder = Path(model).expanduser()
    beside = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    return next((place / RECIPE_OF_RUN for place in beside if (place / RECIPE_OF_RUN).is_file()), None)


def recipe_name(path: Path) -> str:
    """Return the name of a shipped recipe, or of a file; a run's own recipe keeps its original name."""
    run = path.parent / "run.json"
    if path.name == RECIPE_OF_RUN and run.is_file():
        return json.loads(run.read_text())["recipe"]
    return next((name for name, shipped in shipped_recipes().items() if shipped == path), path.name)


def accelerate_config_path(name: str) -> Path:
    """Return the file of an `accelerate launch` configuration, given by path or by a shipped name, such as `ddp`.

    Errors: FileNotFoundError with the shipped names.
    """
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    shipped = {path.stem: path for path in sorted((recipes_folder() / ACCELERATE_CONFIGS).glob("*.yaml"))}
    if name not in shipped:
        raise FileNotFoundError(
            f"There is no accelerate configuration {name}, as a file or among those shipped: {', '.join(shipped)}."
        )
    return shipped[name]


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes, in the installed package or a checkout."""
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe, by file or name (see [`recipe_path`]). Errors: ValueError if it is no YAML mapping."""
    path = recipe_path(name)
    try:
        recipe = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {path} is no YAML: {error}. Correct it there.") from error
    if not isinstance(recipe, dict):
        found = "nothing" if recipe is None else f"a {type(recipe).__name__}"
        raise ValueError(f"The recipe {path} holds {found}; lines of `key: value` are wanted.")
    return recipe


def config_apart(args: Sequence[str]) -> list[str]:
    """Split `--config=RECIPE` into two arguments. Errors: ValueError for a `--config` without a recipe."""
    apart = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" in apart and not any(apart[apart.index("--config") + 1 :][:1]):
        raise ValueError(
            "--config names no recipe. Give a file, or one that ships with the package, such as grpo/tiny."
        )
    return apart


def given(args: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings on a command line except `--config`: {name: values}."""
    settings: dict[str, list[str]] = {}
    values: list[str] = []
    for arg in args:
        if arg.startswith("--"):
            key, equals, value = arg[2:].partition("=")
            values = settings.setdefault(key.replace("-", "_"), [])
            values[:] = [value] if equals else []
        else:
            values.append(arg)
    settings.pop("config", None)
    return settings


def trainer_name(args: Sequence[str], recipe: dict[str, Any]) -> str:
    """Return the trainer of the command line, else of the recipe; needed to parse the rest."""
    return (given(args).get("trainer") or [recipe.get("trainer", "grpo")])[0]


def require_trainer(name: str, known: Iterable[str]) -> None:
    """Reject an unknown `trainer`. Errors: ValueError with the nearest name."""
    if name not in known:
        raise ValueError(f"Unknown trainer {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")


def require_known(recipe: Iterable[str], command_line: Iterable[str], known: Iterable[str], trainer: str) -> None:
    """Reject keys of a recipe and of a command line that are not settings.

    Args: known: the settings of the trainer's configuration, of `ModelConfig` and of `TrainArguments`.
    Errors: ValueError with the nearest setting.
    """
    known = {*known, "env"}  # TrlParser's own: environment variables
    for origin, keys in (("recipe", recipe), ("command line", command_line)):
        for key in keys:
            if key not in known and (origin == "recipe" or key.removeprefix("no_") not in known):
                raise ValueError(f"Unknown key {key!r} in the {origin} for trainer {trainer!r}.{nearest(key, known)}")


def require_in_use(settings: Iterable[str], switches: Mapping[str, bool]) -> None:
    """Reject settings of an adapter, or of 4-bit weights, in a run without them.

    Args: settings: names set by recipe and command line. switches: `use_peft` and `load_in_4bit`.
    Errors: ValueError with the setting that would enable it.
    """
    for name in settings:
        adapter = name.startswith("lora_") or name in ("use_dora", "use_rslora")
        needs = "use_peft" if adapter else "load_in_4bit" if name in FOUR_BIT else None
        if needs and not switches[needs]:
            raise ValueError(
                f"{name} is set, but {needs} is not, so that it would do nothing. Set {needs}: true, or unset {name}."
            )


def require_types(recipe: Mapping[str, Any], hints: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Reject numbers, lists and mappings of the wrong type in a recipe: argparse checks only text.

    Args: hints: the type of each setting to check. defaults: values that a setting may have regardless of its type.
    Errors: ValueError with the value found and the type expected.
    """
    for name, hint in hints.items():
        if name in recipe and recipe[name] != defaults.get(name) and not _fits(value := recipe[name], hint):
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ValueError(f"{name} is {value!r} in the recipe, of type {type(value).__name__}; {wanted} is wanted.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a recipe's value fits a field. Text, which argparse converts, and unknown types are accepted."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    kind, (part, *_) = get_origin(hint) or hint, get_args(hint) or (Any,)
    if kind is NoneType:
        return value is None
    if kind is list:
        if isinstance(value, str):
            return part is str
        numbers = part in (int, float)
        return isinstance(value, list) and all(_fits(v, part) and not (numbers and isinstance(v, str)) for v in value)
    if isinstance(value, str) or kind not in (int, float, bool, dict):
        return True
    return isinstance(value, (int, kind) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the nearest known name, or '' if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
