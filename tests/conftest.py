"""Fixtures of all tests: no network, one thread, small generated media."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import av
import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets.utils.logging import disable_progress_bar
from PIL import Image
from transformers.utils import logging as transformers_logging

from tests.helpers import letter_variety, message
from trl_perception.trainers import GRPOVideoConfig, GRPOVideoTrainer

torch.set_num_threads(1)
disable_progress_bar()
transformers_logging.disable_progress_bar()


def write_clip(path, *, seed, frames=16, fps=4, size=56):
    """An H.264 clip whose frames are single random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (frames, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for colour in colours:
            picture = np.broadcast_to(colour.astype(np.uint8), (size, size, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> list[str]:
    """Four clips of four seconds, 56x56."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{seed}.mp4", seed=seed) for seed in range(4)]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[str]:
    """Four PNG pictures of 56x84 noise."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        paths.append(str(folder / f"{seed}.png"))
    return paths


@pytest.fixture(scope="session")
def rows(clips, pictures) -> dict[str, list[dict]]:
    """Rows by kind; every row has both media columns, so that kinds can be mixed in one dataset."""

    def row(text, videos=(), images=()):
        kinds = ["video"] * len(videos) + ["image"] * len(images)
        return {"prompt": message(text, *kinds), "videos": list(videos), "images": list(images)}

    return {
        "text": [row(f"Say {word}.") for word in ("red", "green blue", "a much longer sentence", "b")],
        "video": [row(f"Colour of scene {i + 1}?", videos=[clip]) for i, clip in enumerate(clips)],
        "image": [row(f"Colour of panel {i + 1}?", images=[picture]) for i, picture in enumerate(pictures)],
        "several": [
            row("Which comes first?", videos=clips[:2], images=pictures[:1]),
            row("Same?", images=pictures[:2]),
            row("And these?", videos=clips[2:4]),
            row("This one?", videos=clips[:1], images=pictures[1:3]),
        ],
        "mixed": [
            row("Colour of scene 1?", videos=clips[:1]),
            row("Say red."),
            row("Colour of panel 2?", images=pictures[:1]),
            row("Which comes first?", videos=clips[1:3], images=pictures[2:3]),
        ],
    }


@pytest.fixture
def make_trainer(tmp_path):
    """Builds a trainer on the embedded model: `make_trainer(rows, cls=..., reward=..., **config)`."""

    def make(rows, cls=GRPOVideoTrainer, config_class=None, reward=letter_variety, model="tiny", extra=None, **config):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 8,
            "max_steps": 5,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
        }
        config_class = config_class or getattr(cls, "config_class", GRPOVideoConfig)
        dataset = rows if isinstance(rows, Dataset | IterableDataset) else Dataset.from_list(rows)
        return cls(
            model=model,
            reward_funcs=reward,
            args=config_class(**{**defaults, **config}),
            train_dataset=dataset,
            **(extra or {}),
        )

    return make
