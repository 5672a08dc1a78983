"""Savings in preparing media: `python -m benchmarks.media [--parts group waiting] [--json FILE]`.

Prints ratios of paths in one run, never a time to be compared with another machine's:

- group: rows of a rollout prepared one by one, as a trainer does that sees G independent rows, against each distinct prompt once;
- waiting: the share of a training step that passes until the media of its rollout are there. Clips of two minutes that were not
  read before, decoded when their rollout begins and read ahead (`media_prefetch`), against clips in memory; and a second epoch with a
  disk cache. Wall time: with as many processors as threads of training and processes that read ahead, the rest of a step is the same.
"""

import argparse
import json
import statistics
import struct
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from datasets import Dataset
from transformers import AutoProcessor, TrainerCallback

from benchmarks.measure import machine
from benchmarks.models import SIZES, random_model
from benchmarks.performance_table import with_table
from trl_perception.assets import model_path
from trl_perception.data import make_synthetic_dataset
from trl_perception.evaluation.tables import aligned
from trl_perception.media import MediaLoader, PromptPreparer, VideoSettings
from trl_perception.trainers import GRPOVideoConfig, GRPOVideoTrainer

SECONDS, RATE, HEIGHT, WIDTH = 120, 30, 240, 320  # of a clip
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]


def seconds(prepare, rows) -> float:
    start = time.perf_counter()
    prepare(rows)
    return time.perf_counter() - start


def group(options: argparse.Namespace) -> None:
    """Each prompt once against row by row."""
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


def long_clips(folder: Path, count: int) -> list[str]:
    """Files of one clip of two minutes in H.264, a moving gradient under noise; each ends with a number of its own."""
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    gradient = np.linspace(0, 200, WIDTH).astype(np.uint8)[None, :, None]
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(SECONDS * RATE):
            picture = np.roll(gradient, number, axis=1) + np.roll(noise, 3 * number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    paths = [folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes((folder / "clip.mp4").read_bytes() + struct.pack(">I4sI", 12, b"free", number))
    return [str(path) for path in paths]


class Waiting(TrainerCallback):
    """Seconds of each optimisation step, and those of them in which the media of its rollout were prepared."""

    def __init__(self, trainer: GRPOVideoTrainer):
        self.steps, self.waits, self.begun = [], [], 0.0
        builder, prepare = trainer._build_rollout, trainer._build_rollout.preparer.__call__

        class Timed(PromptPreparer):
            def __call__(preparer, *args, **kwargs):  # noqa: N805
                begun = time.perf_counter()
                prompts = prepare(*args, **kwargs)
                self.waits[-1] += time.perf_counter() - begun
                return prompts

        builder.preparer.__class__ = Timed
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.waits.append(0.0)
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.perf_counter() - self.begun)

    def of(self, steps: slice) -> tuple[float, float]:
        """Median seconds of a step, and of waiting in it."""
        return statistics.median(self.steps[steps]), statistics.median(self.waits[steps])


def waiting(options: argparse.Namespace) -> dict:
    """Steps on clips in memory, on cold clips with and without reading ahead, and on clips in a disk cache."""
    torch.set_num_threads(1)

    def variety(completions, **columns):
        return [float(len(set(completion[0]["content"])) % 2) for completion in completions]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = long_clips(folder, options.prompts * options.steps)
        rows = Dataset.from_list([{"prompt": QUESTION, "videos": [clip]} for clip in clips])

        def run(epochs: int, **media) -> Waiting:
            model, processor = random_model(options.size)
            config = GRPOVideoConfig(
                output_dir=str(folder / "run"),
                per_device_train_batch_size=options.generations,
                gradient_accumulation_steps=options.prompts,
                num_generations=options.generations,
                max_completion_length=options.length,
                generation_kwargs={"min_new_tokens": options.length},
                num_train_epochs=epochs,
                freeze_vision_tower=True,
                video_max_frames=options.frames,
                video_max_pixels=112 * 168,
                media_workers=options.workers,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                **media,
            )
            trainer = GRPOVideoTrainer(model, variety, config, rows, None, processor)
            times = Waiting(trainer)
            trainer.train()
            return times

        full, second = slice(1, options.steps), slice(options.steps, None)  # the pipeline is full; the second epoch
        disk = {"media_cache_dir": str(folder / "kept"), "media_cache_mb": 1}
        cases = {}
        for what, epochs, steps, media in (
            ("clips in memory", 2, second, {}),
            ("cold clips, `media_prefetch: 0`", 1, full, {"media_cache_mb": 1}),
            ("cold clips, `media_prefetch: 1`", 1, full, {"media_cache_mb": 1, "media_prefetch": 1}),
            ("second epoch, `media_cache_dir`", 2, second, disk),
            ("second epoch, `media_cache_dir`, `media_prefetch: 1`", 1, full, {**disk, "media_prefetch": 1}),
        ):
            step, wait = run(epochs, **media).of(steps)
            cases[what] = {"step_s": step, "wait_s": wait}
            print(f"{what}: {wait / step:.1%} of a step is waiting", flush=True)
    plan = {key: getattr(options, key) for key in ("prompts", "generations", "length", "frames", "workers")}
    return {"machine": machine("cpu"), "clip_s": SECONDS, **plan, "cases": cases}


def as_markdown(result: dict) -> str:
    """A row a way in which the media of a rollout come."""
    lines = [["media", "of a step is waiting", "step, of one in memory"]]
    memory = result["cases"]["clips in memory"]["step_s"]
    for what, case in result["cases"].items():
        lines.append([what, f"{case['wait_s'] / case['step_s']:.1%}", f"{case['step_s'] / memory:.2f}"])
    stated = (
        f"{result['machine']}; {result['prompts']} clips of {result['clip_s']} s a step, {result['frames']} frames each, "
        f"{result['generations']} completions of {result['length']} tokens; {result['workers']} process or thread decodes"
    )
    return f"{stated}\n\n{aligned(lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["group"], choices=("group", "waiting"))
    parser.add_argument("--prompts", type=int, default=8, help="distinct prompts of a rollout")
    parser.add_argument("--generations", type=int, default=8, help="completions a prompt")
    parser.add_argument("--resolution", type=int, default=112, help="pixels along each side of a clip, for group")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs; the median ratio is printed, for group")
    parser.add_argument("--size", default="20m", choices=SIZES, help="of the model, for waiting, as all below")
    parser.add_argument("--frames", type=int, default=32, help="sampled from a clip")
    parser.add_argument("--length", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--steps", type=int, default=4, help="optimisation steps of an epoch, the first not counted")
    parser.add_argument("--workers", type=int, default=1, help="media_workers")
    parser.add_argument(
        "--json", type=Path, help="where the figures of waiting go, and from there into docs/performance.md"
    )
    options = parser.parse_args()
    if "group" in options.parts:
        group(options)
    if "waiting" in options.parts:
        result = waiting(options)
        print(as_markdown(result))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
            PAGE.write_text(with_table(PAGE.read_text(), as_markdown(result), "waiting"))


if __name__ == "__main__":
    main()
