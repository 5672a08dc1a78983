"""The origin of a run for its model card and the recipe saved with its weights, without secrets."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import get_token

from .recipe import given, recipe_name

if TYPE_CHECKING:
    from .reports.card_facts import Origin

HIDDEN = "***"
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def origin_of(args: Sequence[str], recipe: Path | None, parsed: dict[str, Any]) -> "Origin":
    """Return the origin of a run.

    Args:
        args: the command line after `trl-perception train`, as given.
        recipe: the file that `--config` names.
        parsed: all settings by name.
    """
    from .reports.card_facts import Origin  # a slow import that `push` does not need

    dataset = parsed["dataset_name"]
    settings = used_settings(args, recipe, parsed)
    return Origin(
        recipe=without_token(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)),
        command=shlex.join(["trl-perception", "train", *map(without_token, _hidden(args))]),
        base=parsed["model_name_or_path"],
        dataset=dataset,
        split=parsed["dataset_train_split"],
        on_hub=dataset != "synthetic" and not Path(dataset).expanduser().exists(),
        merged=parsed["merge_adapter"],
        name=None if recipe is None else recipe_name(recipe),
        template=parsed["prompt_template"],
    )


def used_settings(args: Sequence[str], recipe: Path | None, parsed: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of recipe and command line, which overrides the recipe; the result is a complete recipe.

    Leaves out tokens, the recipe's `env`, which may hold keys of any kind, and `resume_from_checkpoint`, since a new
    run of the recipe has no checkpoint.
    """
    settings = {} if recipe is None else yaml.safe_load(recipe.read_text())
    for key, values in given(args).items():
        name = key.removeprefix("no_") if key not in parsed else key
        value = parsed[name]
        plain = isinstance(value, (bool, int, float, dict)) or (isinstance(value, list) and len(value) == len(values))
        settings[name] = value if plain or name == "reward_funcs" else " ".join(values)
    for key in ("env", "resume_from_checkpoint"):
        settings.pop(key, None)
    return _without_tokens(settings)


def without_token(text: str) -> str:
    """Remove Hub tokens from a text: the one in use, and anything of their form."""
    token = get_token()
    return HUB_TOKEN.sub(HIDDEN, text.replace(token, HIDDEN) if token else text)


def _hidden(args: Sequence[str]) -> list[str]:
    """Return a command line with its tokens hidden."""
    hidden = list(args)
    for index, arg in enumerate(args):
        key, equals, _ = arg.partition("=")
        if not (arg.startswith("--") and key.endswith("_token")):
            continue
        if equals:
            hidden[index] = f"{key}={HIDDEN}"
        elif index + 1 < len(args):
            hidden[index + 1] = HIDDEN
    return hidden


def _without_tokens(settings: Any) -> Any:
    if isinstance(settings, dict):
        kept = {key: value for key, value in settings.items() if key != "token" and not key.endswith("_token")}
        return {key: _without_tokens(value) for key, value in kept.items()}
    return settings
