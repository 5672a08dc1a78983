"""The output folder: drafts during a run, shards and a card at the end.

OUT/README.md                        data card
OUT/data/train-00000-of-00003.parquet
OUT/media/train/...                  images that the source holds as bytes
OUT/.prepare/train/                  options, drafts of an unfinished run, the finished summary
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from ...media.settings import VideoSettings
from ..adapters.source import URLS

STATE = ".prepare"
TEXT_BLOCKS = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]
FEATURES = Features(
    {
        "id": Value("string"),
        "prompt": TEXT_BLOCKS,
        "videos": [Value("string")],
        "images": [Value("string")],
        "problem_type": Value("string"),
        "solution": Value("string"),
        "options": [Value("string")],
        "time_spans": [[Value("float64")]],
        "duration": Value("float64"),
        "visual_tokens": Value("int64"),
        "pass_rate": Value("float64"),
        "prompt_template": Value("string"),
    }
)
_FLOATS = ("fps", "video_start", "video_end", "sample_fps")
_SETTINGS = [*(f.name for f in dataclasses.fields(VideoSettings)), "sample_fps"]
_BLOCK = {name: Value("float64" if name in _FLOATS else "int64") for name in _SETTINGS}
BLOCKS_WITH_SETTINGS = [{"role": Value("string"), "content": [{**TEXT_BLOCKS[0]["content"][0], **_BLOCK}]}]
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


class SplitFolder:
    """One split of an output folder.

    Args: root: the folder; split: letters, digits and `_`; columns: additional features of the rows.
    """

    def __init__(self, root: Path, split: str, columns: Features | None = None):
        if not re.fullmatch(r"\w+", split):
            raise ValueError(f"split is {split!r}; letters, digits and _ are wanted.")
        self.root = Path(os.path.abspath(root))
        self.split = split
        self.state = self.root / STATE / split
        self.features = Features({**FEATURES, **(columns or {})})

    # Options and the end

    def open(self, spec: dict[str, Any], restart: bool = False) -> dict[str, Any] | None:
        """Start or resume a run with these options; returns the summary of a finished run, else None.

        Errors: ValueError for a folder that holds something else, or the rows of a run with other options.
        """
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / STATE).is_dir():
            raise ValueError(f"{self.root} holds something else. Choose another output folder.")
        if restart:
            self._clear()
        spec = json.loads(json.dumps(spec))
        options = self.state / "options.json"
        if options.exists():
            found = json.loads(options.read_text())
            changes = _differences(found, spec)
            if changes and ((self.state / "finished.json").exists() or self.chunks_done()):
                raise ValueError(
                    f"{self.root} holds split {self.split!r} with other options: {'; '.join(changes)}. Take the old "
                    "ones to resume, another output folder, or --restart to make it again."
                )
        self.state.mkdir(parents=True, exist_ok=True)
        write_atomically(options, json.dumps(spec, indent=2))
        finished = self.state / "finished.json"
        return json.loads(finished.read_text()) if finished.exists() else None

    def publish(self, summary: dict[str, Any]) -> None:
        """Move the drafts that hold rows to `data/`, then write the summary."""
        drafts = [path for path in self._drafts() if pq.ParquetFile(path).metadata.num_rows]
        (self.root / "data").mkdir(exist_ok=True)
        self._remove_shards()
        for number, draft in enumerate(drafts):
            shutil.copyfile(draft, self.root / "data" / f"{self.split}-{number:05d}-of-{len(drafts):05d}.parquet")
        write_atomically(self.state / "finished.json", json.dumps(summary, indent=2))
        for path in self.state.glob("[0-9]*.*"):
            path.unlink()

    # Drafts

    def chunks_done(self) -> list[dict[str, Any]]:
        """Return the tallies of finished chunks, in order."""
        tallies = []
        while (path := self._draft(len(tallies), "json")).exists():
            tallies.append(json.loads(path.read_text()))
        return tallies

    def save_chunk(self, number: int, rows: Sequence[dict[str, Any]], tally: dict[str, Any]) -> None:
        """Write a chunk's rows, then its tally: a chunk is finished once its tally exists."""
        target = self._draft(number, "parquet")
        table = pa.Table.from_pylist([self._as_written(row) for row in rows], schema=self.features.arrow_schema)
        pq.write_table(table, target.with_suffix(".part"))
        os.replace(target.with_suffix(".part"), target)
        write_atomically(self._draft(number, "json"), json.dumps(tally))

    def column(self, name: str) -> list[Any]:
        """Return a column over all drafts."""
        return [value for path in self._drafts() for value in pq.read_table(path, columns=[name])[name].to_pylist()]

    def stored(self, path: str, relative: bool) -> str:
        """Return a medium's path for a row: relative to the output folder if it is inside or `relative` is set."""
        if path.startswith(URLS):
            return path
        inside = Path(path).is_relative_to(self.root)
        return Path(os.path.relpath(path, self.root)).as_posix() if inside or relative else path

    def keep_image(self, name: str, number: int, content: bytes) -> str:
        """Write an encoded image to `media/`; returns its path relative to the folder."""
        ending = next((ending for magic, ending in _MAGIC.items() if content.startswith(magic)), "bin")
        stem = re.sub(r"[^\w.-]", "_", name)
        path = self.root / "media" / self.split / f"{stem}-{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path.relative_to(self.root).as_posix()

    def _as_written(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: row.get(name) for name in self.features}

    def _draft(self, number: int, kind: str) -> Path:
        return self.state / f"{number:05d}.{kind}"

    def _drafts(self) -> list[Path]:
        """Return the drafts of finished chunks."""
        return [self._draft(number, "parquet") for number in range(len(self.chunks_done()))]

    def _remove_shards(self) -> None:
        for path in (self.root / "data").glob(f"{self.split}-[0-9]*-of-[0-9]*.parquet"):
            path.unlink()

    def _clear(self) -> None:
        self._remove_shards()
        for folder in (self.state, self.root / "media" / self.split):
            if folder.exists():
                shutil.rmtree(folder)


def prepared_shards(folder: Path, split: str) -> list[str]:
    """Return the parquet files of a split in `data/`; none for a folder with another layout.

    Errors: ValueError for a split that is missing or unfinished.
    """
    shards = sorted((folder / "data").glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
    if not (folder / STATE).is_dir():  # a copy of only the shards
        return [str(path) for path in shards]
    known = {path.name: (path / "finished.json").exists() for path in sorted((folder / STATE).iterdir())}
    if split not in known:
        raise ValueError(
            f"{folder} has splits {sorted(known)}; {split!r} was asked for. Prepare it into the same folder, or set "
            "dataset_train_split or dataset_test_split."
        )
    if not known[split]:
        raise ValueError(
            f"{folder}: split {split!r} is not finished. Run its `trl-perception prepare` again to resume."
        )
    return [str(path) for path in shards]


def write_atomically(path: Path, text: str) -> None:
    """Write the whole text or nothing."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for key in sorted(found.keys() | wanted.keys()):
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key} was {old!r} and is {new!r}")
    return changes
