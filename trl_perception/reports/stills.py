"""Decodes the frames of a recorded group from its media as small pictures for a page."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ..media import MediaError, frames_at
from ..media.images import read_image

LONGEST_SIDE = 168  # pixels
QUALITY = 78
MOST_PICTURES = 24  # of one group


class Picture(NamedTuple):
    """A small JPEG as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


class Stills:
    """Makes pictures until their data URIs fill `most_bytes`.

    Attributes: left_out: number of pictures that did not fit.
    """

    def __init__(self, most_bytes: int):
        self.room = most_bytes
        self.left_out = 0
        self._known: dict[tuple[str, float | None], Picture | None] = {}

    def of(self, group: dict[str, Any], wanted: Sequence[int]) -> tuple[dict[int, Picture], list[str]]:
        """Return pictures by frame number, and the reasons why media could not be shown.

        Args:
            group: a row of [`trl_perception.reports.rollouts.SCHEMA`]. wanted: numbers of the frames to show.
        """
        pictures, problems = {}, []
        for number, medium in enumerate(group["media"]):
            frames = [index for index in wanted if group["frames"][index]["medium"] == number]
            times = [next(iter(group["frames"][index]["times"]), None) for index in frames]
            try:
                made = self._of_medium(medium, times)
            except MediaError as error:
                problems.append(error.reason)
                continue
            pictures.update({index: one for index, one in zip(frames, made, strict=True) if one is not None})
        return pictures, problems

    def _of_medium(self, medium: dict[str, Any], times: Sequence[float | None]) -> list[Picture | None]:
        source = medium["source"]
        if source is None:
            raise MediaError(
                medium["name"], "the rows hold it as content, which records do not keep", "Give rows paths"
            )
        fresh = [time for time in dict.fromkeys(times) if (source, time) not in self._known]
        if fresh and medium["kind"] == "image":
            self._known[source, None] = self._kept(read_image(source))
        elif fresh:
            for time, frame in zip(fresh, frames_at(source, fresh, longest_side=LONGEST_SIDE), strict=True):
                self._known[source, time] = self._kept(to_pil_image(frame))
        return [self._known[source, time] for time in times]

    def _kept(self, picture: Image.Image) -> Picture | None:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        jpeg = BytesIO()
        picture.save(jpeg, "JPEG", quality=QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
        if len(uri) > self.room:
            self.left_out += 1
            return None
        self.room -= len(uri)
        return Picture(uri, *picture.size)


def worth_showing(scores: Sequence[float], marked: Sequence[bool]) -> list[int]:
    """Select at most MOST_PICTURES frames, in order: all, or marked ones, those with most attention, and some between.

    Args: scores: attention of each frame; marked: evidence or selected.
    """
    count = len(scores)
    if count <= MOST_PICTURES:
        return list(range(count))
    spread = [round(step * (count - 1) / (MOST_PICTURES // 2 - 1)) for step in range(MOST_PICTURES // 2)]
    looked_at = sorted(range(count), key=lambda index: (not marked[index], -scores[index]))
    return sorted(list(dict.fromkeys([*spread, *looked_at]))[:MOST_PICTURES])
