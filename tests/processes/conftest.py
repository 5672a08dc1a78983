"""Rows of all kinds for several processes."""

import pytest

from tests.helpers import message


@pytest.fixture(scope="session")
def kinds(clips, pictures) -> dict[str, dict]:
    """One row of each kind; `flat` gives all completions the same reward."""

    def row(text, videos=(), images=()):
        media = ["video"] * len(videos) + ["image"] * len(images)
        return {"prompt": message(text, *media), "videos": list(videos), "images": list(images)}

    return {
        "video": row("Colour of scene 1?", videos=clips[:1]),
        "text": row("Say red."),
        "image": row("Colour of panel 2?", images=pictures[:1]),
        "both": row("Which comes first?", videos=clips[1:3], images=pictures[2:3]),
        "other video": row("Colour of scene 3?", videos=clips[2:3]),
        "flat": row("A flat scene?", videos=clips[3:4]),
        "broken": row("Gone?", videos=["/nowhere.mp4"]),
    }
