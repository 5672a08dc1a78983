"""Mistakes of a command line, each said in one line."""

import argparse
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..recipe import nearest

PACKAGE = Path(__file__).parents[1]
WHERE = "TRL_PERCEPTION_TRACEBACK"


@contextmanager
def one_line(command: str) -> Iterator[None]:
    """Context manager, and decorator, that ends a command with one line for an error that its user can mend.

    These are the package's own ValueErrors, and what files, the Hub or a missing package say. Any other error keeps its
    traceback, and with TRL_PERCEPTION_TRACEBACK=1 every one does.

    Errors: SystemExit.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        (*_, last) = traceback.extract_tb(error.__traceback__)
        if os.environ.get(WHERE) or (isinstance(error, ValueError) and PACKAGE not in Path(last.filename).parents):
            raise
        raise SystemExit(f"{command}: {' '.join(str(error).split())}") from error


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one line and name the nearest option."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(unknown_option(unknown[0], known))
        return options


def unknown_option(given: str, known: Sequence[str]) -> str:
    """What is said of an option that there is not."""
    return f"Unknown option or stray value {given!r}.{nearest(given.split('=')[0], known)} --help lists the options."
