"""Loads datasets by name: from the Hub, from a local file or folder, or synthetic."""

import codecs
import difflib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from .. import __version__
from .names import LOADERS, require_dataset
from .preparation import prepared_shards
from .synthetic import VERSION, make_synthetic_dataset
from .templates import apply_template

MEDIA_LISTS = ("images", "videos")
MEDIA_SINGLE = ("image", "video")
MEDIA_KEYS = (*MEDIA_SINGLE, "url", "path", "image_url", "video_url")  # of a block in a message


def cache_dir() -> Path:
    """Return the folder of synthetic data: $TRL_PERCEPTION_CACHE, or `~/.cache/trl_perception`."""
    return Path(os.environ.get("TRL_PERCEPTION_CACHE", "~/.cache/trl_perception")).expanduser()


def synthetic_options(given: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """Convert the setting `synthetic`, a mapping or JSON, to arguments of `make_synthetic_dataset`.

    Errors: ValueError for any other value, and for an unknown argument, with the nearest one.
    """
    found = mapping_of("synthetic", given, example={"size": 128, "seed": 1})
    if found is None:
        return None
    known = inspect.signature(make_synthetic_dataset).parameters.keys() - {"split"}
    for key in found.keys() - known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"synthetic has the key {key!r}; did you mean {nearest!r}? Known: {', '.join(sorted(known))}.")
    return found


def mapping_of(
    name: str, given: Mapping[str, Any] | str | None, *, example: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Convert a setting that is a mapping or JSON to a dictionary. Errors: ValueError for any other value."""
    found = given
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is {given!r}, no JSON ({error}). Write '{json.dumps(example)}'.") from error
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"{name} is {given!r}; a mapping is wanted, such as {json.dumps(example)}.")
    return None if found is None else dict(found)


def load_rows(
    name: str,
    split: str,
    *,
    config: str | None = None,
    synthetic: dict[str, Any] | None = None,
    prompt_template: str = "none",
) -> Dataset:
    """Load the rows of one split.

    Args:
        name: `"synthetic"`, a local JSON, JSONL or parquet file, a folder (written by `trl-perception prepare`, saved
            by `datasets`, or of such files, `SPLIT.jsonl`), or a data set on the Hub.
        split: the split. A single local file is one split, whatever its name.
        config: configuration name of a Hub data set.
        synthetic: arguments of `make_synthetic_dataset` for `"synthetic"`.
        prompt_template: key of `TEMPLATES`; its text is appended to the last user turn of every prompt.

    Relative media paths in local files are relative to the file's folder.
    Errors: FileNotFoundError for a path that does not exist, or media of a prepared folder that were moved; ValueError
        for a file of an unknown kind or without rows, an unfinished preparation, or rows with another template.
    """
    return apply_template(_load(name, split, config, synthetic), prompt_template)


def _load(name: str, split: str, config: str | None, synthetic: dict[str, Any] | None) -> Dataset:
    if name == "synthetic":
        options = synthetic_options(synthetic) or {}
        if "size" not in options:
            raise ValueError("The dataset is 'synthetic', and synthetic says no size. Set synthetic: {size: 128}.")
        made_of = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(options.pop("output_dir", cache_dir() / "synthetic" / made_of)).expanduser()
        return make_synthetic_dataset(folder / split, split=split, **options)
    require_dataset(name)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in LOADERS:
            raise ValueError(f"{path} is a {path.suffix or 'nameless'} file; one of {', '.join(LOADERS)} is wanted.")
        return _read_from([path], _with_absolute_paths(_rows_of(path), path.parent))
    if path.is_dir() and (shards := prepared_shards(path, split)):
        rows = load_dataset("parquet", data_files=shards, split="train")
        return _read_from(shards, _require_first_medium(_with_absolute_paths(rows, path), path))
    # `datasets` infers the kind from the majority of files, and media files outnumber those with rows.
    if files := [file for file in (path / f"{split}{suffix}" for suffix in LOADERS) if file.is_file()]:
        if len(files) > 1:
            raise ValueError(f"{path} has {' and '.join(file.name for file in files)}. Keep one of them, or name it.")
        return _read_from(files, _with_absolute_paths(_rows_of(files[0]), path))
    if path.is_dir():
        saved = (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()
        rows = load_from_disk(str(path)) if saved else _loaded(path, split)
        if isinstance(rows, DatasetDict):
            rows = _split_of(rows, split, name)
        return _with_absolute_paths(rows, path)
    try:
        return _split_of(load_dataset(name, config), split, name)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"Dataset {name} is no local file or folder (looked from {Path.cwd()}), and the Hub does not give it ({error}). "
            "Correct the name, or see to the connection."
        ) from error


def _read_from(files: Sequence[str | Path], rows: Dataset) -> Dataset:
    """Record the source files of rows, in the field where `datasets` records downloads."""
    rows.info.download_checksums = {str(file): {} for file in files}
    return rows


def _loaded(folder: Path, split: str) -> DatasetDict:
    """Load the splits of a folder as `datasets` finds them. Errors: ValueError if it finds none."""
    try:
        builder = load_dataset_builder(str(folder))
        files = builder.config.data_files if builder.name == "json" else {}
        if files and all(Path(file).suffix in LOADERS for of_split in files.values() for file in of_split):
            return DatasetDict({name: _json_rows(*map(Path, of_split)) for name, of_split in files.items()})
        return load_dataset(str(folder))
    except (ValueError, FileNotFoundError, DatasetGenerationError) as error:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ValueError(
            f"{folder} (found: {found}) gives no split {split!r} ({error}). Put {split}.jsonl into it, or set dataset_train_split or "
            "dataset_test_split."
        ) from error


def _rows_of(file: Path) -> Dataset:
    """Load the rows of a local file. Errors: ValueError for no rows, or lines that cannot be read as rows."""
    if LOADERS[file.suffix] == "json":
        return _json_rows(file)
    try:
        rows = load_dataset("parquet", data_files=str(file), split="train")
    except DatasetGenerationError as error:
        raise ValueError(f"{file} cannot be read as rows: {error.__cause__}. A parquet file is wanted.") from error
    if not len(rows):
        raise _without_rows(file)
    return rows


def _json_rows(*files: Path) -> Dataset:
    """Load files of one JSON object per line, or of one list of objects each; stored in the cache of `datasets`.

    Values keep their types in the file: `datasets` would convert every text that looks like a date to a timestamp.
    A column of several types becomes a Json column of `datasets`. Errors: ValueError as `_rows_of`.
    """
    made_of = hashlib.sha256(__version__.encode())
    for file in files:
        made_of.update(file.read_bytes())
    kept = Path(datasets_config.HF_DATASETS_CACHE, "trl_perception", made_of.hexdigest()[:24])
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as unfinished:
            folder = Path(unfinished, "rows")
            _typed_rows(files).save_to_disk(str(folder))
            with suppress(OSError):  # if another process was faster
                folder.rename(kept)
    return load_from_disk(str(kept))


def _typed_rows(files: Sequence[Path]) -> Dataset:
    rows = [row for file in files for row in _json_objects(file)]
    if not rows:
        raise _without_rows(files[0])
    try:
        columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
        return Dataset.from_dict(columns, on_mixed_types="use_json")
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ValueError(
            f"{files[0]} cannot be read as rows: {error}. Use values of one type in each column."
        ) from error


def _json_objects(file: Path) -> list[dict[str, Any]]:
    text = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    parts = [text] if text.lstrip().startswith(b"[") else text.split(b"\n")
    objects: list[dict[str, Any]] = []
    for number, part in enumerate(parts, start=1):
        if not part.strip():
            continue
        try:
            found = json.loads(part.decode("utf-8"))
            if re.search(rb"\\u[dD][89a-fA-F]", part):  # half of a surrogate pair is not a character
                json.dumps(found, ensure_ascii=False).encode()
        except ValueError as error:  # not UTF-8, not JSON, or text that UTF-8 cannot encode
            raise ValueError(
                f"{file} cannot be read as rows: line {number}: {error}. One JSON object a line in UTF-8 is wanted, or one "
                "JSON list of objects."
            ) from error
        objects += found if isinstance(found, list) else [found]
    for number, found in enumerate(objects, start=1):
        if not isinstance(found, dict):
            raise ValueError(f"{file}: row {number} is {str(found)[:80]!r}; a JSON object is wanted.")
    return objects


def _without_rows(file: Path) -> ValueError:
    return ValueError(f"{file} has no rows. Give dataset_name a file with some.")


def _split_of(rows: DatasetDict, split: str, name: str) -> Dataset:
    if split not in rows:
        raise ValueError(
            f"Dataset {name} has splits {sorted(rows)}; {split!r} was asked for. Set dataset_train_split "
            "or dataset_test_split."
        )
    return rows[split]


def _with_absolute_paths(rows: Dataset, folder: Path) -> Dataset:
    """Make relative media paths in columns and messages absolute, relative to the dataset's folder.

    The result depends only on the arguments, not on which files exist, so that `datasets` can cache it.
    """
    kinds = {key: str(feature) for key, feature in rows.features.items()}
    textual = [key for key in (*MEDIA_LISTS, *MEDIA_SINGLE) if re.search("string|Json", kinds.get(key, ""))]
    if any(f"'{key}'" in kinds.get("prompt", "") for key in MEDIA_KEYS) or "Json" in kinds.get("prompt", ""):
        textual.append("prompt")
    if not textual:
        return rows
    # Module functions are hashed by name; the version prevents reuse of another version's cache.
    given = {"columns": textual, "folder": str(folder.resolve()), "version": __version__}
    return rows.map(_absolute_row, features=rows.features, fn_kwargs=given)


def _absolute_row(row: dict[str, Any], columns: Sequence[str], folder: str, version: str) -> dict[str, Any]:
    fixed = {key: _absolute(row[key], folder) for key in columns if key != "prompt"}
    fixed |= {key: fixed[key] or [] for key in MEDIA_LISTS if key in fixed}
    if "prompt" in columns and isinstance(row["prompt"], list):
        fixed["prompt"] = [_absolute_message(message, folder) for message in row["prompt"]]
    return fixed


def _absolute_message(message: Any, folder: str) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    blocks = [_absolute(block, folder) if isinstance(block, dict) else block for block in message["content"]]
    return {**message, "content": blocks}


def _absolute(medium: Any, folder: str) -> Any:
    if isinstance(medium, list):
        return [_absolute(part, folder) for part in medium]
    if isinstance(medium, dict):
        return {key: _absolute(value, folder) if key in MEDIA_KEYS else value for key, value in medium.items()}
    if not isinstance(medium, str) or not medium or "://" in medium or medium.startswith("data:"):
        return medium
    return str(Path(folder, os.path.expanduser(medium)))


def _require_first_medium(rows: Dataset, folder: Path) -> Dataset:
    """Return the rows after checking that their first medium exists. Errors: FileNotFoundError."""
    first = next((path for row in rows for key in MEDIA_LISTS for path in row[key]), None)
    if first is not None and "://" not in first and not Path(first).exists():
        raise FileNotFoundError(
            f"{folder}: the medium {first} does not exist; media were moved after the preparation. Move them back, or "
            "prepare the rows again (--check none is quick; --relative-media lets folder and media move together)."
        )
    return rows
