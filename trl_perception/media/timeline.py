"""The display time of each frame of a clip: read from its packets, or from decoded frames if packets lack times."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
from av.format import Flags

from .container import REPLACE, BudgetedContainer, declared_seconds, decodable
from .errors import MediaError
from .sampling import average_fps

MIN_SHARE = 0.9  # of the declared frames or seconds; a file with fewer is truncated
CAPTURES = Flags.ts_discont.value | Flags.no_timestamps.value  # MPEG and raw streams, which may be cut anywhere
ROUNDING = 2  # ticks of the time base by which a frame's time may be rounded, including the first frame's


class Entry(NamedTuple):
    """The stored fields of a packet or a frame; pts, dts and duration in ticks of the stream's time base."""

    pts: int | None
    duration: int
    dts: int | None = None
    is_keyframe: bool = False
    is_discard: bool = False


@dataclass(frozen=True)
class Timeline:
    """When each of N frames is shown.

    Args:
        times: (N,) seconds from the first shown frame, ascending.
        fps: average frames per second.
        rounding: seconds by which times may be rounded.
        from_keyframe: whether packets before the first keyframe are skipped: a capture may start anywhere; in any other
            file this means that the first keyframe is damaged.
        packets: those of the N frames in order of presentation, so that frames are found by timestamp after a seek; None
            if frames are found by counting.
    """

    times: np.ndarray
    fps: float
    rounding: float
    from_keyframe: bool
    packets: list[Entry] | None = None

    def shown_at(self, times: np.ndarray) -> list[int]:
        """Return the number of the frame on screen at each time: the last one shown by then, or the first frame."""
        return (np.searchsorted(self.times, times + self.rounding, side="right") - 1).clip(0).tolist()


def packet_timeline(container: BudgetedContainer, stream: av.VideoStream, name: str) -> Timeline:
    """Build the timeline from packets, without decoding. Without usable times frames count as evenly spaced.

    Raises: MediaError for a file without frames, a truncated file, or a corrupt time table.
    """
    packets, end = _read_packets(container, stream)
    is_capture = container.format.flags & CAPTURES
    from_keyframe = any(packet.is_keyframe for packet in (packets if is_capture else packets[:1]))
    shown = [packet for packet in (decodable(packets) if from_keyframe else packets) if not packet.is_discard]
    pts = [packet.pts for packet in packets]
    timed = _ascend(sorted(pts) if stream.codec_context.codec.reorder and None not in pts else pts)
    timed = timed and _ascend([packet.dts for packet in packets if packet.dts is not None])
    _refuse_truncated(container, stream, packets, timed, end, name)
    if not shown:
        raise MediaError(name, "it holds no video frame, and at least one is wanted", REPLACE)
    _refuse_corrupt_times(stream, packets, shown, timed, name)
    shown = sorted(shown) if timed else shown
    return _timeline(stream, shown, timed, name, from_keyframe, packets=shown if timed else None)


def decoded_timeline(container: BudgetedContainer, stream: av.VideoStream, name: str, from_keyframe: bool) -> Timeline:
    """Build the timeline from decoded frames, in one full pass without pixel conversion. Raises: MediaError."""
    frames = [Entry(frame.pts, frame.duration or 0) for frame in container.decode(stream, from_keyframe)]
    if not frames:
        raise MediaError(name, "no video frame decodes, and at least one is wanted", REPLACE)
    timed = _ascend([frame.pts for frame in frames])
    _refuse_truncated(container, stream, frames, timed, None, name)
    return _timeline(stream, frames, timed, name, from_keyframe)


def _read_packets(container: BudgetedContainer, stream: av.VideoStream) -> tuple[list[Entry], float]:
    """Return the stream's packets in decoding order, and the end in seconds of the last packet of any stream."""
    packets, end = [], 0.0
    hides = stream.codec_context.codec.canonical_name == "vp8"
    for packet in container.demux():
        duration = packet.duration or 0
        if packet.pts is not None:
            end = max(end, (packet.pts + duration) * float(packet.time_base))
        # Bit 4 is 0 for a VP8 frame that is a reference for others and is never shown (RFC 6386, 9.1).
        if packet.stream is stream and packet.size and not (hides and not memoryview(packet)[0] & 16):
            packets.append(Entry(packet.pts, duration, packet.dts, packet.is_keyframe, packet.is_discard))
    return packets, end


def _ascend(ticks: Sequence[int | None]) -> bool:
    return None not in ticks and all(earlier < later for earlier, later in pairwise(ticks))


def _timeline(stream, shown: list[Entry], timed: bool, name: str, from_keyframe: bool, packets=None) -> Timeline:
    declared, tick = float(stream.average_rate or stream.guessed_rate or 0), float(stream.time_base)
    if timed:
        times = (np.asarray([entry.pts for entry in shown], dtype=np.int64) - shown[0].pts) * tick
        rounding = min(ROUNDING * tick, 0.5 * times[-1] / max(1, len(times) - 1))  # less than half of a frame
        fps = average_fps(times, shown[-1].duration * tick, declared, rounding)
        return Timeline(times, fps, rounding, from_keyframe, packets)
    fps = float(stream.guessed_rate or declared)
    if fps <= 0:
        raise MediaError(name, "it has neither timestamps nor a frame rate", REPLACE)
    return Timeline(np.arange(len(shown)) / fps, fps, 0.5 / fps, from_keyframe)


def _refuse_corrupt_times(stream, packets: list[Entry], shown: list[Entry], timed: bool, name: str) -> None:
    """Check an MP4's time table against its declared length and against its edit list, which drops frames by time."""
    reason, declared = "", declared_seconds(stream)
    length = sum(packet.duration for packet in shown) * float(stream.time_base)
    if declared and stream.frames >= len(packets) and length * MIN_SHARE > declared:
        reason = f"its frames take {length:.2f} of {declared:.2f} declared seconds"
    if not timed and any(packet.is_discard for packet in packets):
        reason = "frames are left out by time, and times are missing or out of order"
    if reason:
        raise MediaError(name, f"its time table is corrupt: {reason}", REPLACE)


def _refuse_truncated(
    container: BudgetedContainer, stream, found: list[Entry], timed: bool, end: float | None, name: str
) -> None:
    """Compare with the declared values: an edited file falls short of one of them, a truncated file of all."""
    shares = {}
    if stream.frames:
        shares[f"{len(found)} of {stream.frames} declared frames"] = len(found) / stream.frames
    declared, tick = declared_seconds(stream), float(stream.time_base)
    if declared is None and container.duration and end is not None:  # of all streams, as `end` is
        declared = container.duration / av.time_base
        shares[f"{end:.2f} of {declared:.2f} declared seconds"] = end / declared
    elif declared and timed and found:
        # A tag counts from the container's zero, a stream's own duration from the stream's start.
        origin = 0 if stream.duration is None else min(found).pts if stream.start_time is None else stream.start_time
        length = (max(found).pts + max(found).duration - origin) * tick
        shares[f"{length:.2f} of {declared:.2f} declared seconds"] = length / declared
    if shares and max(shares.values()) < MIN_SHARE:
        raise MediaError(name, f"the file is truncated: it holds {' and '.join(shares)}", REPLACE)
