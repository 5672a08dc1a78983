"""The synthetic clips in Video-R1's published layout: `python -m trl_perception.data.export_synthetic --output DIR`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .synthetic import make_synthetic_dataset

FAMILIES = (
    "scene_color",
    "event_order",
    "flash_count",
    "needle",
    "static",
)  # families with one medium each, and types of Video-R1
LAYOUTS = {"video-r1": "Video-R1-260k.json", "video-r1-cot": "Video-R1-COT-165k.json"}


def export_synthetic(output_dir: str | Path, *, size: int, layout: str = "video-r1", **synthetic: Any) -> Path:
    """Write `size` synthetic rows as the JSON file of a layout, with the clips in `clips/` beside it.

    Args:
        layout: "video-r1", or "video-r1-cot", where `process` holds the reasoning.
        synthetic: other arguments of `make_synthetic_dataset`: seed, split, medium, seconds, ...
    Returns: the JSON file. Errors: ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; one of {', '.join(LAYOUTS)} is wanted.")
    output_dir = Path(output_dir)
    rows = make_synthetic_dataset(output_dir / "clips", size=size, families=FAMILIES, **synthetic)
    records = [_record(row, output_dir.absolute(), layout) for row in rows]
    file = output_dir / LAYOUTS[layout]
    file.write_text(json.dumps(records, indent=1))
    return file


def _record(row: Mapping[str, Any], folder: Path, layout: str) -> dict[str, Any]:
    (path,) = row["videos"] + row["images"]
    question = row["prompt"][0]["content"][-1]["text"]
    return {
        "problem_id": row["id"],
        "problem": question.removesuffix("\n" + "\n".join(row["options"])),  # published problems leave out options
        "data_type": "video" if row["videos"] else "image",
        "problem_type": row["problem_type"],
        "options": row["options"],
        "process": f"<think>{row['reasoning']}</think>" if layout == "video-r1-cot" else "",
        "solution": f"<answer>{row['solution']}</answer>",
        "path": f"./{Path(path).relative_to(folder)}",
        "data_source": f"synthetic/{row['family']}",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="video-r1")
    parser.add_argument("--size", type=int, default=128, help="rows (default: %(default)s)")
    parser.add_argument("--split", default="train", help="splits share no clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--medium", choices=("video", "image", "mixed"), default="video")
    given = parser.parse_args(argv)
    options = {"seed": given.seed, "split": given.split, "medium": given.medium}
    print(export_synthetic(given.output, size=given.size, layout=given.layout, **options))


if __name__ == "__main__":
    main()
