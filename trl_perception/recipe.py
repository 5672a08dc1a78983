"""Recipes: where one lies, what it says, and whether each value is of its key's type."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml


def recipe_path(name: str) -> Path:
    """A recipe file: a path, or the name of one that ships with the package, such as `appo/tiny`.

    Errors: FileNotFoundError with the nearest name.
    """
    if Path(name).is_file():
        return Path(name)
    here = Path(__file__).parent
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"  # installed, or a checkout
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    shipped = {str(path.relative_to(folder).with_suffix("")): path for path in folder.glob("*/*.yaml")}
    if wanted not in shipped:
        raise FileNotFoundError(
            f"There is no recipe {name}, as a file or among those shipped.{nearest(wanted, shipped)}"
        )
    return shipped[wanted]


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by file or name (see [`recipe_path`]). Errors: ValueError for what is no YAML mapping."""
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
    """The arguments with `--config=RECIPE` as two of them. Errors: ValueError for a `--config` without a recipe."""
    apart = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" in apart and not any(apart[apart.index("--config") + 1 :][:1]):
        raise ValueError(
            "--config names no recipe. Give a file, or one that ships with the package, such as grpo/tiny."
        )
    return apart


def require_types(recipe: dict[str, Any], types: Sequence[type]) -> None:
    """Refuse numbers, lists and mappings of a recipe where something else is wanted: argparse converts text alone.

    Errors: ValueError with the value found and the type wanted.
    """
    for of_type in types:
        hints = get_type_hints(of_type)
        for setting in (setting for setting in fields(of_type) if setting.name in recipe):
            value, hint = recipe[setting.name], hints[setting.name]
            if value != setting.default and not _fits(value, hint):
                wanted = hint.__name__ if isinstance(hint, type) else str(hint)
                raise ValueError(
                    f"{setting.name} is {value!r} in the recipe, of type {type(value).__name__}; {wanted} is wanted."
                )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a recipe's value suits a field. Text is argparse's to convert; kinds that are not known here are not judged."""
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
    """' Did you mean ...?' with the nearest known name, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
