"""Rows of three kinds, and a run that saved checkpoints."""

import shutil

import pytest

from tests.callbacks.checkpoints.resuming import SAVED, build


@pytest.fixture(scope="session")
def four(clips, pictures):
    def row(text, kind=None, **media):
        content = [*([{"type": kind}] if kind else []), {"type": "text", "text": text}]
        return {"prompt": [{"role": "user", "content": content}], "videos": [], "images": [], **media}

    return [
        row("Colour of scene 1?", "video", videos=clips[:1]),
        row("Say red."),
        row("Colour of panel 2?", "image", images=pictures[:1]),
        row("Colour of scene 4?", "video", videos=clips[3:4]),
    ]


@pytest.fixture(scope="session")
def saved(four, tmp_path_factory):
    """Checkpoints after 2 and 4 steps, in the middle of rollouts of 3 steps; the final one is removed."""
    folder = tmp_path_factory.mktemp("saved")
    build("grpo", four, {**SAVED, "output_dir": str(folder)}).train()
    shutil.rmtree(folder / "checkpoint-5")
    return folder
