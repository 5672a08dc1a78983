"""A checkpoint's folder: written under a name that nobody resumes from, complete by one rename, and told apart by a list."""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# No part of its name begins like a checkpoint's, and pushes of transformers leave out what begins with an underscore.
UNFINISHED = "_unfinished"
REPLACED = "replaced-"
COMPLETE = "complete.json"  # the last file of a checkpoint: {"files": {path: bytes}, "checksums": {path: CRC-32}}
CHECKED = 1 << 26  # bytes; a larger file is known by its size alone
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")

NOT_OURS = (
    f"it has no {COMPLETE}, so that it was not written to its end, or not by this package. Resume from another one; its "
    "weights alone, if they are whole, are a model for model_name_or_path"
)


def finish(draft: Path, final: Path) -> None:
    """List the files of a draft, flush them to the disk, and give the folder its name in one rename.

    A complete checkpoint of that name makes way, and is there until then. One process calls it, when all have written.
    """
    files = {str(path.relative_to(draft)): path.stat().st_size for path in _files(draft)}
    checksums = {name: zlib.crc32((draft / name).read_bytes()) for name, size in files.items() if size <= CHECKED}
    (draft / COMPLETE).write_text(json.dumps({"files": files, "checksums": checksums}, indent=1))
    for path in [*draft.rglob("*"), draft]:
        _flush(path)
    replaced = draft.parent / f"{REPLACED}{final.name}"
    if final.exists():
        final.rename(replaced)
    draft.rename(final)
    _flush(final.parent)
    shutil.rmtree(draft.parent)


def clear_unfinished(run: Path) -> list[str]:
    """Clear away what a run that died while saving left behind; what was done, in words.

    A complete checkpoint that was to make way for one which never came gets its name back.
    """
    parent, said = run / UNFINISHED, []
    if not parent.is_dir():
        return said
    for path in sorted(parent.glob(f"{REPLACED}*")):
        final = run / path.name.removeprefix(REPLACED)
        if not final.exists():
            path.rename(final)
            said.append(f"{final} is in its place again: the one that was to replace it was not finished.")
    left = sorted(path.name for path in parent.iterdir() if not path.name.startswith(REPLACED))
    shutil.rmtree(parent)
    return [*said, *(f"Removed {name} of {run}, which was not finished." for name in left)]


def to_resume(run: Path, wanted: str | os.PathLike | bool) -> tuple[Path, list[str]]:
    """The checkpoint to resume from, and why later ones were passed over.

    Args:
        run: the output folder.
        wanted: a checkpoint's folder, or True for the last complete one of the run.
    Errors: ValueError where there is none, or where the folder that was named is not complete.
    """
    if wanted is not True:
        folder = Path(wanted)
        if (reason := incomplete_reason(folder)) is not None:
            raise ValueError(f"resume_from_checkpoint is {folder}, which cannot be resumed from: {reason}.")
        return folder, []
    last, passed = last_complete(run), []
    for folder in reversed(_checkpoints(run)):
        if folder == last:
            return folder, passed
        passed.append(f"{folder} is passed over: {incomplete_reason(folder)}.")
    found = " ".join(passed) or f"It holds no folder {PREFIX_CHECKPOINT_DIR}-STEP."
    raise ValueError(
        f"resume_from_checkpoint is true, and {run} has no complete checkpoint. {found} Name another folder, set output_dir "
        "to the run's, or leave resume_from_checkpoint out to start from the beginning."
    )


def last_complete(run: Path) -> Path | None:
    """The complete checkpoint of the latest step in a run's output folder; None where there is none."""
    complete = (folder for folder in reversed(_checkpoints(run)) if incomplete_reason(folder) is None)
    return next(complete, None)


def incomplete_reason(folder: Path) -> str | None:
    """Why a folder is no complete checkpoint, in words; None for one that is."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        listed = json.loads((folder / COMPLETE).read_text())
        files, checksums = listed["files"], listed.get("checksums", {})
    except FileNotFoundError:
        return NOT_OURS
    except (ValueError, KeyError, TypeError):
        return f"its {COMPLETE} is damaged"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"its {name} is missing"
        if path.stat().st_size != size:
            return f"its {name} has {path.stat().st_size:,} bytes and was written with {size:,}"
        if name in checksums and zlib.crc32(path.read_bytes()) != checksums[name]:
            return f"its {name} does not have the content that was written"
    return None


def _checkpoints(run: Path) -> list[Path]:
    """Folders with a checkpoint's name, by step."""
    matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _flush(path: Path) -> None:
    """Without it, a machine that goes down may keep the name and lose the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
