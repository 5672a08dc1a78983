"""Opens containers with PyAV; every packet and frame counts against a budget."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import av

from .errors import MediaError
from .limits import Budget
from .sniff import begins_like

# Formats that refer to other files, devices or servers, or that render text as pictures: none may be opened.
NAMES_OTHERS = (
    "concat",
    "dash",
    "hls",
    "imf",
    "image2",
    "image2pipe",
    "rtp",
    "rtsp",
    "sap",
    "sdp",
    "webm_dash_manifest",
)
DEVICES = ("alsa", "fbdev", "kmsgrab", "lavfi", "video4linux2", "v4l2", "x11grab")
TEXT_ART = ("adf", "bin", "idf", "tty", "xbin")
REFUSED_FORMATS = frozenset((*NAMES_OTHERS, *DEVICES, *TEXT_ART))
PADDING = 1 << 20  # pixels that decoders may add to a frame; decoders check this looser bound before they allocate
CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")

REPLACE = "Re-encode or replace the file, or drop this sample"


class BudgetedContainer:
    """A container whose packets and frames count against a budget, with the PyAV interface that is used here.

    Attributes: damaged: whether the frame last decoded, or one that it may have been predicted from, is marked as damaged.
    """

    def __init__(self, container: av.container.InputContainer, budget: Budget):
        self.format, self.streams, self.duration = container.format, container.streams, container.duration
        self.seek = container.seek
        self.damaged = False
        self._container, self._budget = container, budget

    def demux(self, stream: av.VideoStream | None = None) -> Iterator[av.Packet]:
        """Yield packets of one stream, or of all, counting those of the video. Raises: MediaError past a limit."""
        count, flushed = 0, False
        try:
            for packet in self._container.demux(*([] if stream is None else [stream])):
                count += bool(packet.size and packet.stream.type == "video")
                flushed = not packet.size
                self._budget.check_time()
                self._budget.check_frames(count)
                yield packet
        except IndexError:  # PyAV flushes streams in order and fails at one that appeared midway: ours came before it
            if not flushed:
                raise

    def decode(
        self, stream: av.VideoStream, from_keyframe: bool, key_pts: int | None = None
    ) -> Iterator[av.VideoFrame]:
        """Decode frames of one stream from the container's position. Raises: MediaError past a limit.

        Args:
            from_keyframe: skip packets that cannot be decoded before the first keyframe.
            key_pts: the keyframe's time; no frames if the container's position is after it.
        """
        count, self.damaged = 0, False
        packets = self.demux(stream)
        for packet in decodable(packets) if from_keyframe else packets:
            if key_pts is not None and (packet.pts is None or packet.pts > key_pts):
                return
            key_pts = None
            for frame in packet.decode():
                count += 1
                self._budget.check_time()
                self._budget.check_frames(count)
                self._budget.check_pixels(frame.height, frame.width)
                self.damaged = frame.is_corrupt or (self.damaged and not frame.key_frame)
                yield frame


def decodable(packets: Iterable[Any]) -> Iterator[Any]:
    """Skip packets before the first keyframe, and those behind it that are shown before it: they need earlier ones."""
    packets = dropwhile(lambda packet: not packet.is_keyframe, packets)
    for keyframe in islice(packets, 1):
        yield keyframe
    yield from dropwhile(lambda packet: None not in (packet.pts, keyframe.pts) and packet.pts < keyframe.pts, packets)


@contextmanager
def opened(medium: Path | bytes, budget: Budget) -> Iterator[tuple[BudgetedContainer, av.VideoStream]]:
    """Context manager that opens a container and its best video stream (no cover picture); errors become MediaError."""
    budget.check_time()
    bound = {"max_pixels": str(2 * budget.limits.max_pixels + PADDING)}
    try:
        # An absolute path, so that FFmpeg does not read a file name as a protocol.
        file = BytesIO(medium) if isinstance(medium, bytes) else str(medium.absolute())
        left = budget.seconds_left
        with av.open(
            file, metadata_errors="ignore", options=bound | {"format_whitelist": _formats()}, timeout=(left, left)
        ) as container:
            stream = _best_video(container, budget.name)
            if stream.codec_context is None:
                raise MediaError(budget.name, "this FFmpeg has no decoder for its video stream", REPLACE)
            budget.check_pixels(stream.height or 0, stream.width or 0)
            budget.check_frames(stream.frames, "declared in its header")
            stream.thread_type, stream.codec_context.thread_count = "AUTO", budget.threads
            # By default decoders do not check checksums, and on damage they log it and return a wrong frame.
            stream.codec_context.options = bound | {"err_detect": "crccheck+explode"}
            yield BudgetedContainer(container, budget), stream
    except (av.error.FFmpegError, OSError) as error:
        budget.check_time()
        kind = "truncated, damaged or not a video"
        if isinstance(error, av.error.ArgumentError):  # decoders raise this for a size beyond their bound
            kind = f"truncated, damaged, not a video or far above media_max_pixels {budget.limits.max_pixels}"
        why = f"{error.strerror or error}{begins_like(medium)}"
        reason = f"decoding failed, it is {kind} ({why})"
        raise MediaError(budget.name, reason, REPLACE) from error


def declared_seconds(stream: av.VideoStream) -> float | None:
    """Return the duration in seconds that a file declares for its video stream, or None."""
    if stream.duration is not None:
        return stream.duration * float(stream.time_base)
    tag = CLOCK.fullmatch(stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None


def _best_video(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the stream that players choose, by FFmpeg's rule: the default one, then frames and bit rate."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = sorted({"cover picture" if stream.type == "video" else stream.type for stream in container.streams})
        reason = f"it has {' and '.join(kinds) or 'no'} streams, and a video stream is wanted"
        raise MediaError(name, reason, REPLACE)
    best = container.streams.best("video")
    return best if best in streams else streams[0]


@cache
def _formats() -> str:
    """Return the names of the formats that may be opened, for FFmpeg's option."""
    names = {name for names in av.formats_available for name in names.split(",")}
    return ",".join(sorted(names - REFUSED_FORMATS))
