"""Reports mistakes of a command line in one line."""

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
    """Context manager and decorator that exits with a one-line message for an error that the user can fix.

    These are the package's own ValueErrors, and errors of files, the Hub or a missing package. Any other error keeps
    its traceback; with TRL_PERCEPTION_TRACEBACK=1 all errors do.

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
    """argparse's parser with one-line errors that name the nearest option."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(unknown_option(unknown[0], known))
        return options


def unknown_option(given: str, known: Sequence[str]) -> str:
    """Return the message for an unknown option."""
    return f"Unknown option or stray value {given!r}.{nearest(given.split('=')[0], known)} --help lists the options."
