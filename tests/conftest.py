"""Fixtures of all tests: no network, one thread, small media that the tests make."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import av
import numpy as np
import pytest
import torch
from datasets.utils.logging import disable_progress_bar
from PIL import Image
from transformers.utils import logging as transformers_logging

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
