"""The recipes that ship with the package: `trl-perception recipes`."""

import yaml

from ..recipe import ACCELERATE_CONFIGS, recipes_folder, shipped_recipes
from .errors import Parser


def main(argv: list[str] | None = None) -> None:
    Parser(prog="trl-perception recipes", description=__doc__).parse_args(argv)
    print("recipes (trl-perception train --config NAME):")
    for name, path in shipped_recipes().items():
        text = path.read_text()
        print(f"  {name:<27}{yaml.safe_load(text)['trainer']:<14}{_title(text)}")
    print("\naccelerate configurations (trl-perception train --accelerate_config NAME --config RECIPE):")
    folder = recipes_folder() / ACCELERATE_CONFIGS
    for path in sorted(folder.glob("*.yaml")):
        print(f"  {path.stem:<27}{_title(path.read_text())}")
    print(f"\nThe files are in {recipes_folder()}.")


def _title(text: str) -> str:
    """Return the first line, a comment that describes the file."""
    return text.partition("\n")[0].removeprefix("# ")


if __name__ == "__main__":
    main()
