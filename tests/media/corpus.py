"""Every broken or odd input that media reading is tested on.

python -m tests.media.corpus --output DIR writes the inputs that are files; without an output it prints a table of all.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.media.case import Case
from tests.media.corpus_images import IMAGES
from tests.media.corpus_sources import SOURCES
from tests.media.corpus_videos import VIDEOS

CORPUS: list[Case] = [*VIDEOS, *IMAGES, *SOURCES]


def make(case: Case, folder: Path, address: str = "http://127.0.0.1:9") -> Any:
    """The case's source, with its files in a separate folder. Args: address: of the server that answers its URLs."""
    own = folder / str(CORPUS.index(case))
    own.mkdir(parents=True)
    (folder / "address").write_text(address)
    return case.make(own)


def table(cases: Sequence[Case] = CORPUS) -> str:
    """The corpus as Markdown: decoded and refused inputs, each with a description."""
    lines = ["| input | as | what is odd | outcome |", "|---|---|---|---|"]
    lines += [f"| {c.name} | {c.kind} | {c.about} | {'refused' if c.refused else 'decoded'} |" for c in cases]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder to write")
    folder = parser.parse_args().output
    if folder is None:
        print(table())
        return
    for case in CORPUS:
        source = make(case, folder)
        print(f"{case.name}: {str(source)[:100]}")


if __name__ == "__main__":
    main()
