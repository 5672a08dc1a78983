"""A checkpoint's folder: written under a name that nobody resumes from, complete by one rename, and checked by a list."""

import json
import os
import re
import shutil
import zlib
from pathlib import Path

from accelerate.logging import get_logger
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = get_logger(__name__)

# No part of its name begins like a checkpoint's, and pushes of transformers leave out what begins with an underscore.
UNFINISHED = "_unfinished"
REPLACED = "replaced-"
COMPLETE = "complete.json"  # the last file of a checkpoint: {"files": {path: bytes}, "checksums": {path: CRC-32}}
CHECKED = 1 << 26  # bytes; of a larger file only the size is checked


def finish(draft: Path, final: Path) -> None:
    """List the files of a draft, flush them to the disk, and give the folder its name in one rename.

    A complete checkpoint of that name stays until then. One process calls it, when all have written.
    """
    files = [path for path in sorted(draft.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(draft)): path.stat().st_size for path in files}
    checksums = {name: zlib.crc32((draft / name).read_bytes()) for name, size in sizes.items() if size <= CHECKED}
    (draft / COMPLETE).write_text(json.dumps({"files": sizes, "checksums": checksums}, indent=1))
    _flush(*draft.rglob("*"), draft)
    if final.exists():
        final.rename(draft.parent / f"{REPLACED}{final.name}")
    draft.rename(final)
    _flush(final.parent)
    shutil.rmtree(draft.parent)


def clear_unfinished(run: Path) -> None:
    """Delete what a run that died while saving left behind, and log it.

    A complete checkpoint that was to be replaced by one which was not finished gets its name back.
    """
    parent = run / UNFINISHED
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        final = run / path.name.removeprefix(REPLACED)
        if not path.name.startswith(REPLACED):
            logger.warning(f"Removed {path.name} of {run}, which was not finished.")
        elif not final.exists():
            path.rename(final)
            logger.warning(f"{final} is in its place again: the one that was to replace it was not finished.")
    shutil.rmtree(parent)


def wanted_checkpoint(resume_from: str | os.PathLike | bool | None) -> str | os.PathLike | bool:
    """`resume_from_checkpoint` as it is meant: a folder, True for the last checkpoint, False for none; recipes write words."""
    return {"true": True, "false": False, "none": False}.get(str(resume_from).lower(), resume_from)


def folder_to_resume(run: Path, wanted: str | os.PathLike | bool) -> Path:
    """The checkpoint to resume from: `wanted`, or for True the last complete one of the output folder `run`.

    Errors: ValueError where there is none, or where the folder that was named is not complete.
    """
    if wanted is not True:
        folder = Path(wanted)
        if (reason := incomplete_reason(folder)) is not None:
            raise ValueError(f"resume_from_checkpoint is {folder}, which cannot be resumed from: {reason}.")
        return folder
    passed = []
    for folder in _checkpoints(run):
        if (reason := incomplete_reason(folder)) is None:
            for line in passed:
                logger.warning(line)
            return folder
        passed.append(f"{folder} is passed over: {reason}.")
    found = " ".join(passed) or f"It holds no folder {PREFIX_CHECKPOINT_DIR}-STEP."
    raise ValueError(
        f"resume_from_checkpoint is true, and {run} has no complete checkpoint. {found} Name another folder, set output_dir "
        "to the run's, or leave resume_from_checkpoint out to start from the beginning."
    )


def last_complete(run: Path) -> Path | None:
    """The complete checkpoint of the latest step in a run's output folder; None where there is none."""
    return next((folder for folder in _checkpoints(run) if incomplete_reason(folder) is None), None)


def incomplete_reason(folder: Path) -> str | None:
    """Returns the reason why a folder is no complete checkpoint, or None."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        listed = json.loads((folder / COMPLETE).read_text())
        files, checksums = listed["files"], listed.get("checksums", {})
    except FileNotFoundError:
        return (
            f"it has no {COMPLETE}, so that it was not written to its end, or not by this package. Resume from another one; its "
            "weights alone, if they are whole, are a model for model_name_or_path"
        )
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
    """Folders with a checkpoint's name, the latest step first."""
    steps = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in run.glob("*")}
    return sorted((path for path in steps if steps[path]), key=lambda path: -int(steps[path][1]))


def _flush(*paths: Path) -> None:
    """Without it, a machine that goes down may keep the name and lose the bytes."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
