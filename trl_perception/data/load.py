"""Datasets by name: from the Hub, from a local file or folder, or synthetic."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .preparation import prepared_shards
from .synthetic import VERSION, make_synthetic_dataset
from .templates import apply_template

LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
MEDIA_LISTS = ("images", "videos")
MEDIA_SINGLE = ("image", "video")


def cache_dir() -> Path:
    """Where synthetic data are kept: $TRL_PERCEPTION_CACHE, or `~/.cache/trl_perception`."""
    return Path(os.environ.get("TRL_PERCEPTION_CACHE", "~/.cache/trl_perception")).expanduser()


def load_rows(
    name: str,
    split: str,
    *,
    config: str | None = None,
    synthetic: dict[str, Any] | None = None,
    prompt_template: str = "none",
) -> Dataset:
    """Rows of one split.

    Args:
        name: `"synthetic"`, a local JSON, JSONL or parquet file, a folder (written by `trl-perception prepare`, saved
            by `datasets`, or of such files), or a data set on the Hub.
        split: the split. A single local file is one split, whatever its name.
        config: configuration name of a Hub data set.
        synthetic: arguments of `make_synthetic_dataset` for `"synthetic"`.
        prompt_template: key of `TEMPLATES`; its text follows the last user turn of every prompt.

    Relative media paths in local files count from the file's folder.
    Errors: FileNotFoundError for a path that does not exist, or media of a prepared folder that were moved; ValueError
        for a file of an unknown kind, an unfinished preparation, or rows that carry another template.
    """
    return apply_template(_load(name, split, config, synthetic), prompt_template)


def _load(name: str, split: str, config: str | None, synthetic: dict[str, Any] | None) -> Dataset:
    if name == "synthetic":
        options = dict(synthetic or {})
        made_of = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(options.pop("output_dir", cache_dir() / "synthetic" / made_of))
        return make_synthetic_dataset(folder / split, split=split, **options)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in LOADERS:
            raise ValueError(f"{path} is a {path.suffix or 'nameless'} file; one of {', '.join(LOADERS)} is wanted.")
        rows = load_dataset(LOADERS[path.suffix], data_files=str(path), split="train")
        return _with_absolute_paths(rows, path.parent)
    if path.is_dir() and (shards := prepared_shards(path, split)):
        rows = load_dataset("parquet", data_files=shards, split="train")
        return _require_first_medium(_with_absolute_paths(rows, path), path)
    if path.is_dir():
        saved = (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()
        rows = load_from_disk(str(path)) if saved else load_dataset(str(path))
        if isinstance(rows, DatasetDict):
            rows = _split_of(rows, split, name)
        return _with_absolute_paths(rows, path)
    if name.startswith((".", "/", "~")) or path.suffix in LOADERS:
        raise FileNotFoundError(f"Dataset file or folder {name} does not exist (looked from {Path.cwd()}).")
    return _split_of(load_dataset(name, config), split, name)


def _split_of(rows: DatasetDict, split: str, name: str) -> Dataset:
    if split not in rows:
        raise ValueError(
            f"Dataset {name} has splits {sorted(rows)}; {split!r} was asked for. Set dataset_train_split "
            "or dataset_test_split."
        )
    return rows[split]


def _with_absolute_paths(rows: Dataset, folder: Path) -> Dataset:
    """Media paths that exist from the dataset's folder, made absolute; everything else as it is."""

    def absolute(medium: Any) -> Any:
        if isinstance(medium, str) and not Path(medium).is_absolute() and (folder / medium).exists():
            return str((folder / medium).resolve())
        return medium

    def fix(row: dict[str, Any]) -> dict[str, Any]:
        fixed = {key: [absolute(medium) for medium in row[key] or []] for key in MEDIA_LISTS if key in row}
        return {**fixed, **{key: absolute(row[key]) for key in MEDIA_SINGLE if key in row}}

    textual = [
        key for key in (*MEDIA_LISTS, *MEDIA_SINGLE) if key in rows.features and "string" in str(rows.features[key])
    ]
    return rows.map(lambda row: fix({key: row[key] for key in textual})) if textual else rows


def _require_first_medium(rows: Dataset, folder: Path) -> Dataset:
    """The rows, once their first medium is found where they say. Errors: FileNotFoundError."""
    first = next((path for row in rows for key in MEDIA_LISTS for path in row[key]), None)
    if first is not None and "://" not in first and not Path(first).exists():
        raise FileNotFoundError(
            f"{folder}: the medium {first} does not exist; media were moved after the preparation. Move them back, or "
            "prepare the rows anew (--check none is quick; --relative-media lets folder and media move together)."
        )
    return rows
