"""Rollout records: tables with some groups of a run, written by trainers and read by the report.

    RUN/rollouts/001-from-000000/step-000011-process-00.parquet      one table per recorded step and process

Each call of `train()` is an attempt with its own numbered folder, whose name has the step after which it began. An
attempt
that began after step s replaces records of earlier attempts after s: a resumed run continues, a new one starts over.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = "rollouts"
SIGNAL_KINDS = ("token", "mask", "frame", "frame_mask", "token_frame")
_ATTEMPT = re.compile(r"(\d+)-from-(\d+)")
_TABLE = re.compile(r"step-(\d+)-process-(\d+)\.parquet")

# `values` by kind: "token" and "mask" (T,), "frame" and "frame_mask" (F,), "token_frame" (len(tokens), F) row by row for
# the tokens numbered in `tokens`. Masks are 0 and 1. All are rounded to four significant digits.
SIGNAL = pa.struct(
    {"name": pa.string(), "kind": pa.string(), "values": pa.list_(pa.float32()), "tokens": pa.list_(pa.int32())}
)

COMPLETION = pa.struct(
    {
        "text": pa.string(),
        "tokens": pa.list_(pa.string()),
        "token_ids": pa.list_(pa.int32()),
        "mask": pa.list_(pa.bool_()),  # whether the policy is trained on the token
        "length": pa.int32(),  # tokens sampled, including those not recorded
        "rewards": pa.list_(pa.float32()),  # one for each of `reward_names`, null where it does not apply
        "reward": pa.float32(),  # their weighted sum
        "advantage": pa.float32(),
        "token_weights": pa.list_(pa.float32()),  # null if every token has its sequence's advantage
        "signals": pa.list_(SIGNAL),
    }
)

SCHEMA = pa.schema(
    {
        "step": pa.int32(),  # the optimisation step that the rollout feeds first, as the log counts them
        "sample": pa.string(),
        "prompt": pa.string(),
        # `source` is what the media package can read again: a path or URL, null for arrays and bytes.
        "media": pa.list_(pa.struct({"kind": pa.string(), "source": pa.string(), "name": pa.string()})),
        # In the order in which the model sees them, one entry a temporal cell or image: the number of its medium and the
        # times in seconds of the raw frames in it (none for an image).
        "frames": pa.list_(pa.struct({"medium": pa.int32(), "times": pa.list_(pa.float32())})),
        "evidence": pa.list_(pa.list_(pa.float32())),  # [start, end) in seconds, null where the row has none
        "problem_type": pa.string(),
        "solution": pa.string(),
        "reward_names": pa.list_(pa.string()),
        "signals": pa.list_(SIGNAL),  # of the whole group
        "completions": pa.list_(COMPLETION),
    }
)


def new_attempt(run: str | os.PathLike, after_step: int) -> Path:
    """Create and return the folder of the next attempt. Called by one process of a run."""
    parent = Path(run) / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((number for number, _, _ in _attempts(parent)), default=0)
    folder = parent / f"{number:03d}-from-{after_step:06d}"
    folder.mkdir()
    return folder


def write_groups(
    folder: Path, step: int, process: int, groups: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> Path:
    """Write the groups that one process recorded at a step, rows of [`SCHEMA`], atomically.

    Args:
        about: facts of the run for the report, the same for all groups: `method`, `reinforces`, `settings`.
    Errors: FileExistsError if the table exists.
    """
    path = folder / f"step-{step:06d}-process-{process:02d}.parquet"
    if path.exists():
        raise FileExistsError(f"{path} exists; a record is never written over.")
    folder.mkdir(parents=True, exist_ok=True)  # on a node that did not create it
    draft = path.with_suffix(".part")
    schema = SCHEMA.with_metadata({"trl_perception": json.dumps(about)})
    pq.write_table(pa.Table.from_pylist(list(groups), schema=schema), draft, compression="zstd")
    draft.rename(path)
    return path


def thin(folder: Path, process: int, most: int) -> None:
    """Keep at most `most` tables of one process: removes those with the closest neighbours, never the first or last."""
    kept = sorted(folder.glob(f"step-*-process-{process:02d}.parquet"))
    while len(kept) > max(most, 2):
        steps = [int(_TABLE.fullmatch(path.name)[1]) for path in kept]
        kept.pop(min(range(1, len(kept) - 1), key=lambda i: steps[i + 1] - steps[i - 1])).unlink()


def read_groups(run: str | os.PathLike) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read all groups of a run by step, rows of [`SCHEMA`], and the `about` of its latest table.

    Errors: ValueError for a table that is not a record of this version.
    """
    groups, about, before = [], {}, None
    for _, start, folder in sorted(_attempts(Path(run) / FOLDER), reverse=True):
        newer = []
        for path in sorted(folder.glob("step-*-process-*.parquet")):
            if before is not None and int(_TABLE.fullmatch(path.name)[1]) > before:
                continue
            table = pq.read_table(path, partitioning=None)
            if table.schema.remove_metadata() != SCHEMA:
                raise ValueError(
                    f"{path} is no rollout record of this version (columns {table.schema.names}). Report it with the "
                    "version that wrote it, or move it away."
                )
            newer += table.to_pylist()
            about = about or json.loads(table.schema.metadata[b"trl_perception"])
        groups = newer + groups
        if newer:
            before = start if before is None else min(before, start)
    return groups, about


def _attempts(parent: Path) -> list[tuple[int, int, Path]]:
    """Return number, step after which it began, and folder of each attempt."""
    matches = ((_ATTEMPT.fullmatch(path.name), path) for path in parent.glob("*-from-*"))
    return [(int(match[1]), int(match[2]), path) for match, path in matches if match]
