"""Synthetic clips and images with known evidence: H.264 files, questions, answers, and where these are visible."""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value

from .drawing import add_noise, add_tint
from .encoding import write_mp4, write_png
from .synthetic_image import IMAGE_FAMILIES
from .synthetic_spec import Sample, SceneSettings
from .synthetic_text import text_only
from .synthetic_video import VIDEO_FAMILIES

FAMILIES = (*VIDEO_FAMILIES, "text_only")
MEDIA = ("video", "image", "mixed")
VERSION = 4
"""Incremented when the same arguments would give other rows, so that an old folder is not reused."""

FEATURES = Features(
    {
        "id": Value("string"),
        "prompt": [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}],
        "videos": [Value("string")],
        "images": [Value("string")],
        "problem_type": Value("string"),
        "solution": Value("string"),
        "options": [Value("string")],
        "family": Value("string"),
        "evidence": [[Value("float64")]],
        "evidence_boxes": [[Value("int64")]],
        "duration": Value("float64"),
        "reasoning": Value("string"),
    }
)


def make_synthetic_dataset(
    output_dir: str | Path,
    *,
    size: int,
    seed: int = 0,
    split: str = "train",
    families: Sequence[str] | None = None,
    medium: str = "video",
    scenes: tuple[int, int] = (2, 3),
    seconds: float = 4.0,
    fps: int = 4,
    resolution: int | tuple[int, int] = 56,
    distractors: int = 1,
    noise: float = 4.0,
    tint: float = 0.0,
    num_workers: int = 2,
) -> Dataset:
    """Write `size` clips or images with questions, and return them as a Dataset whose paths are absolute.

    row i = family[i mod n](random numbers of (seed, split, i)): splits share no rows, and more rows keep the first ones

    Families: scene_color, event_order, flash_count, event_time, needle, static, text_only. Every second text_only row
    carries an unrelated clip or image, the others carry no media.

    Args:
        output_dir: folder to write; a folder with this dataset is reused, a folder with another one is rejected.
        families: names from `FAMILIES`; None uses all families of the medium (`event_time` has no image version).
        medium: "video", "image", or "mixed": half of the rows of a family with both versions are images.
        scenes: (min, max) scenes of a clip, or panels of an image (at most four).
        seconds: length of a clip, a multiple of 0.5.
        fps: frames per second, even, since events start and end on half seconds.
        resolution: pixels, one number for a square or (height, width).
        distractors: small gray shapes that drift through the picture.
        noise: standard deviation of the pixel noise, in levels of 255.
        tint: largest shift of each color channel of a clip or image, in levels of 255: other shades of the same names.
        num_workers: threads that write files.

    Returns: columns `id`, `prompt` (conversational, one user turn), `videos`, `images`, `problem_type`, `solution`,
        `options`, `family`, `evidence` ([start, end] in seconds, end exclusive), `evidence_boxes` ([x0, y0, x1, y1] in
        pixels, images only), `duration` in seconds, `reasoning` (the trace `reference_completion` quotes).
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size is {size!r}; a number of rows, 1 or more, is wanted")
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    settings = SceneSettings(
        tuple(scenes), float(seconds), fps, (height, width), distractors, float(noise), float(tint)
    )
    chosen = families_of(medium, families)
    spec = {"version": VERSION, "size": size, "seed": seed, "split": split, "families": chosen, "medium": medium}
    spec = json.loads(json.dumps(spec | asdict(settings)))

    output_dir = Path(output_dir).absolute()
    if not _holds(output_dir, spec):
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
        _write(draft, spec, settings, num_workers)
        _publish(draft, output_dir, spec)
    return _load(output_dir)


def reference_completion(row: Mapping) -> str:
    """Return the completion to imitate: `<think>` the row's trace `</think><answer>` its solution `</answer>`."""
    return f"<think>{row['reasoning']}</think><answer>{row['solution']}</answer>"


def families_of(medium: str, families: Sequence[str] | None = None) -> list[str]:
    """The families of a medium, or those of them that are named; an unknown name is refused."""
    if medium not in MEDIA:
        raise ValueError(f"medium is {medium!r}; give one of {', '.join(MEDIA)}")
    possible = [name for name in FAMILIES if medium != "image" or name in IMAGE_FAMILIES or name == "text_only"]
    chosen = possible if families is None else list(families)
    unknown = [name for name in chosen if name not in possible]
    if unknown or not chosen:
        raise ValueError(f"families is {chosen}; with medium={medium!r} give one or more of {', '.join(possible)}")
    return chosen


def draw_row(spec: Mapping, settings: SceneSettings, index: int) -> tuple[dict, np.ndarray | None]:
    """Row `index` of a dataset, and its clip (F,H,W,3) or image (H,W,3) uint8, noise included; None without media.

    Args: spec: `seed`, `split`, `families` and `medium` of [`make_synthetic_dataset`].
    """
    rng = np.random.default_rng([spec["seed"], zlib.crc32(spec["split"].encode()), index])
    families = spec["families"]
    family = families[index % len(families)]
    as_image = spec["medium"] == "image" or (spec["medium"] == "mixed" and rng.random() < 0.5)
    if family == "text_only":
        sample = text_only(rng)
        if (index // len(families)) % 2 == 0:
            unrelated = (IMAGE_FAMILIES if as_image else VIDEO_FAMILIES)["scene_color"](rng, settings)
            sample.frames, sample.image = unrelated.frames, unrelated.image
    else:
        drawers = IMAGE_FAMILIES if as_image and family in IMAGE_FAMILIES else VIDEO_FAMILIES
        sample = drawers[family](rng, settings)
    name = f"{spec['split']}-{spec['seed']}-{index:06d}"
    videos = [f"media/{name}.mp4"] if sample.frames is not None else []
    images = [f"media/{name}.png"] if sample.image is not None else []
    kinds = ["video"] * len(videos) + ["image"] * len(images)
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": sample.question.text}]
    pixels = sample.frames if videos else sample.image
    row = {
        "id": name,
        "prompt": [{"role": "user", "content": content}],
        "videos": videos,
        "images": images,
        "problem_type": sample.question.problem_type,
        "solution": sample.question.solution,
        "options": sample.question.options,
        "family": family,
        "evidence": sample.evidence,
        "evidence_boxes": sample.evidence_boxes,
        "duration": settings.seconds if videos else 0.0,
        "reasoning": _resolved(sample),
    }
    return row, None if pixels is None else add_noise(add_tint(pixels, settings.tint, rng), settings.noise, rng)


def _write(folder: Path, spec: dict, settings: SceneSettings, num_workers: int) -> None:
    (folder / "media").mkdir()
    with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
        rows = list(pool.map(lambda index: _write_row(folder, spec, settings, index), range(spec["size"])))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "spec.json").write_text(json.dumps(spec, indent=2) + "\n")


def _write_row(folder: Path, spec: dict, settings: SceneSettings, index: int) -> dict:
    row, pixels = draw_row(spec, settings, index)
    for path in row["videos"]:
        write_mp4(folder / path, pixels, settings.fps)
    for path in row["images"]:
        write_png(folder / path, pixels)
    return row


def _resolved(sample: Sample) -> str:
    """Return the trace; for multiple choice it ends with the option, "scene 1 red scene 2 blue, blue B"."""
    chosen = [option for option in sample.question.options if option.startswith(sample.question.solution)]
    return sample.reasoning + "".join(f", {text} {letter}" for letter, text in (c.split(". ") for c in chosen))


def _holds(folder: Path, spec: dict) -> bool:
    """Whether the folder holds exactly this dataset; a folder with any other content is rejected."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    found = json.loads((folder / "spec.json").read_text()) if (folder / "spec.json").exists() else {}
    found = asdict(SceneSettings()) | found  # of a release before the last settings, whose rows have their defaults
    if found != spec:
        differing = sorted(key for key in spec | found if spec.get(key) != found.get(key))
        raise ValueError(
            f"{folder} holds something else (it differs in {', '.join(differing)}). "
            "Choose another output_dir, or delete this one to make the dataset again."
        )
    return True


def _publish(draft: Path, output_dir: Path, spec: dict) -> None:
    """Move a finished draft into place atomically. If another process was faster, its files are the same."""
    try:
        os.rename(draft, output_dir)
    except OSError:
        shutil.rmtree(draft)
        if not _holds(output_dir, spec):
            raise


def _load(folder: Path) -> Dataset:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        for column in ("videos", "images"):
            row[column] = [str(folder / path) for path in row[column]]
    return Dataset.from_list(rows, features=FEATURES)
