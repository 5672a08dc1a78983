"""Savings from preparing a prompt once for its G completions: `python -m benchmarks.media`.

Prints the ratio of two paths in one run, never a time to be compared with another machine's: rows of a rollout prepared
one by one, as a trainer does that sees G independent rows, against each distinct prompt once.
"""

import argparse
import statistics
import tempfile
import time

from transformers import AutoProcessor

from trl_perception.assets import model_path
from trl_perception.data import make_synthetic_dataset
from trl_perception.media import MediaLoader, PromptPreparer, VideoSettings


def seconds(prepare, rows) -> float:
    start = time.perf_counter()
    prepare(rows)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8, help="distinct prompts of a rollout")
    parser.add_argument("--generations", type=int, default=8, help="completions a prompt")
    parser.add_argument("--resolution", type=int, default=112, help="pixels along each side of a clip")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs; the median ratio is printed")
    options = parser.parse_args()
    processor = AutoProcessor.from_pretrained(model_path("tiny"))
    with tempfile.TemporaryDirectory() as folder:
        rows = list(make_synthetic_dataset(folder + "/clips", size=options.prompts, resolution=options.resolution))
        repeated = [row for row in rows for _ in range(options.generations)]

        def once(_):
            PromptPreparer(processor, loader=MediaLoader(), video_settings=VideoSettings(fps=4.0))(rows)

        def row_by_row(_):
            for row in repeated:
                PromptPreparer(processor, loader=MediaLoader(), video_settings=VideoSettings(fps=4.0))([row])

        pairs = [(seconds(row_by_row, None), seconds(once, None)) for _ in range(options.repeats)]
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    print(
        f"{options.prompts} prompts x {options.generations} completions, {options.resolution}x{options.resolution} pixels: "
        f"preparing each prompt once is {ratio:.1f} times as fast as row by row (median of {options.repeats} pairs)"
    )


if __name__ == "__main__":
    main()
