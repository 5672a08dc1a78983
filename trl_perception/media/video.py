"""Video clips: a file, URL, bytes, frames or array in, the chosen frames with their times out. Decoding is PyAV's."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional
from transformers.video_utils import VideoMetadata

from .container import REPLACE, Charged, declared_duration, opened
from .errors import MediaError, describe
from .images import array_frames, as_uint8, listed_frames, resolve
from .limits import Budget, MediaLimits
from .sampling import VideoSettings, average_fps, frame_size, nearest_frames, sample_indices, thin_indices

MIN_DECODED_SHARE = 0.9  # of the declared frames or duration; a file with less is truncated
SEEK_GAP = 32  # frames that must lie before the next wanted keyframe for a seek to be cheaper than decoding on
DECODER_BATCH = 16  # full-size frames asked of a decoder object at once

# Containers and codecs where one packet is one shown frame and carries its presentation time.
PACKET_TIMED_FORMATS = ("mov", "matroska")
PACKET_TIMED_CODECS = ("h264", "hevc", "av1", "vp9")

Fit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class VideoClip:
    """The frames kept of a clip. Clips are shared by a cache and by the rows of a group: do not write to them.

    Args:
        frames: (F,3,H,W) uint8, RGB, resized.
        times: (F,) float64, seconds at which each frame is shown; the file's first shown frame is at 0.
        fps: average frames per second of the source.
        indices: F frame numbers such that index / fps is the time that was asked for. With a constant frame rate they
            number the file's frames from 0.
        total_frames: frames of the source in the range that was sampled.
    """

    frames: Tensor
    times: Tensor
    fps: float
    indices: list[int]
    total_frames: int

    @property
    def metadata(self) -> VideoMetadata:
        """What a processor reads: sampled_fps = F / total_frames * fps, timestamps = indices / fps."""
        return VideoMetadata(
            total_num_frames=self.total_frames,
            fps=self.fps,
            width=self.frames.shape[-1],
            height=self.frames.shape[-2],
            duration=self.total_frames / self.fps,
            video_backend="pyav",
            frames_indices=list(self.indices),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the frames take."""
        return self.frames.nbytes


def read_video(
    source: Any,
    settings: VideoSettings | None = None,
    *,
    factor: int = 28,
    size_limits: tuple[int | None, int | None] | None = None,
    source_fps: float = 2.0,
    limits: MediaLimits | None = None,
) -> VideoClip:
    """Decode the frames that settings ask for, resized with antialiased bicubic interpolation.

    frame[k] = the source's frame shown nearest to indices[k] / fps, so that frames of a variable rate are even in time

    Args:
        source: path, file:// or http(s) URL, bytes, {"path", "bytes"}, a list of frames (each as read_image takes), an
            array (F,H,W,3) or (F,3,H,W) of uint8 or floats in [0, 1], or a decoder object with torchcodec's metadata
            and get_frames_at. Lists and arrays keep all their frames, up to nframes or max_frames.
        settings: sampling and size; None means VideoSettings().
        factor: frame sides become multiples of it, patch_size * merge_size of the processor.
        size_limits: the processor's (min_pixels, max_pixels) of one frame, used where settings have none.
        source_fps: frames per second at which a list or array was sampled; files know their own.
        limits: what reading it may cost, None means MediaLimits().
    Raises: MediaError for whatever cannot be read whole: missing, truncated, damaged, without video, out of range, or
        past a limit.
    Source: qwen_vl_utils.vision_process.fetch_video. Differs: uint8 out; times come from presentation timestamps;
        rotation metadata is applied; nothing stands in for a clip that fails.
    """
    settings = settings or VideoSettings()
    name = describe(source)
    budget = Budget(name, limits)
    if not source_fps > 0:
        raise ValueError(f"source_fps is {source_fps}; set it to the frames per second of {name}")

    def fitter(nframes: int) -> Fit:
        size: list[int] = []
        bounds = {"factor": factor, "size_limits": size_limits, "source": name}

        def fit(frame: Tensor) -> Tensor:  # one size for the clip, fixed by its first frame
            if not size:
                size.extend(frame_size(*frame.shape[-2:], nframes, settings, **bounds))
            return functional.resize(frame, size, interpolation=InterpolationMode.BICUBIC, antialias=True)

        return fit

    if hasattr(source, "get_frames_at"):
        return _from_decoder(source, settings, fitter, budget)
    if isinstance(source, np.ndarray | Tensor) and source.ndim:
        return _from_frames(source, array_frames, settings, fitter, source_fps, budget)
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray | memoryview):
        return _from_frames(source, listed_frames, settings, fitter, source_fps, budget)
    return _from_file(resolve(source, budget), settings, fitter, budget)


def frames_at(
    source: Any, times: Sequence[float], *, longest_side: int, limits: MediaLimits | None = None
) -> list[Tensor]:
    """The frames of a file that are shown nearest to some times, to look at: (3,h,w) uint8 RGB, one a time.

    Args:
        source: path, file:// or http(s) URL, bytes, or {"path", "bytes"}.
        times: seconds from the file's first frame, in any order.
        longest_side: pixels; larger frames are made smaller.
        limits: what reading it may cost, None means MediaLimits().
    Raises: MediaError as [`read_video`].
    """
    budget = Budget(describe(source), limits)
    medium = resolve(source, budget)

    def fit(frame: Tensor) -> Tensor:
        scale = min(1.0, longest_side / max(frame.shape[-2:]))
        return functional.resize(frame, [max(1, round(side * scale)) for side in frame.shape[-2:]], antialias=True)

    for timeline in (_packet_timeline(medium, budget), None):
        timeline = timeline or _decoded_timeline(medium, budget)
        chosen = nearest_frames(timeline.times, np.asarray(times, np.float64))
        found = _decode_chosen(medium, timeline, sorted(set(chosen)), fit, budget) if chosen else {}
        if all(number in found for number in chosen):
            return [found[number] for number in chosen]
    raise MediaError(budget.name, f"only {len(found)} of {len(set(chosen))} chosen frames decode", REPLACE)


def _from_frames(source, frames_at, settings, fitter, fps, budget: Budget) -> VideoClip:
    budget.check_frames(len(source), "given")
    indices, count = thin_indices(settings, len(source), fps, budget.name)
    fit = fitter(len(indices))
    kept = [fit(frame) for frame in frames_at(source, indices, budget)]
    return _clip(kept, np.asarray(indices) / fps, fps, indices, count)


def _from_decoder(source, settings, fitter, budget: Budget) -> VideoClip:
    name, total, fps = budget.name, source.metadata.num_frames, source.metadata.average_fps
    if not total or not fps:
        raise MediaError(name, f"the decoder declares {total} frames at {fps} frames per second", REPLACE)
    budget.check_frames(total, "declared by the decoder")
    indices, count = sample_indices(settings, total, fps, name)
    fit, kept, times = fitter(len(indices)), [], []
    start = getattr(source.metadata, "begin_stream_seconds", None) or 0.0
    for low in range(0, len(indices), DECODER_BATCH):
        budget.check_time()
        part = indices[low : low + DECODER_BATCH]
        try:
            batch = source.get_frames_at(indices=part)
        except (RuntimeError, ValueError, IndexError) as error:
            raise MediaError(name, f"the decoder failed ({error})", REPLACE) from error
        budget.check_pixels(*batch.data.shape[-2:])
        shown = getattr(batch, "pts_seconds", None)
        times.extend(np.asarray(part) / fps if shown is None else np.asarray(shown) - start)
        kept.extend(fit(frame.contiguous()) for frame in as_uint8(batch.data, name))
    return _clip(kept, times, fps, indices, count)


def _clip(frames: list[Tensor], times: Any, fps: float, indices: list[int], count: int) -> VideoClip:
    return VideoClip(torch.stack(frames), torch.tensor(np.asarray(times, np.float64)), float(fps), indices, count)


@dataclass(frozen=True)
class _Timeline:
    """When each shown frame is shown: times (N,) seconds from the first. With pts, frames are found by timestamp after
    a seek to a keyframe (given by number); without, they are found by counting."""

    times: np.ndarray
    fps: float
    pts: list[int] | None = None
    keyframes: list[int] | None = None


def _from_file(
    medium: Path | bytes, settings: VideoSettings, fitter: Callable[[int], Fit], budget: Budget
) -> VideoClip:
    timeline = _packet_timeline(medium, budget)
    while True:
        timeline = timeline or _decoded_timeline(medium, budget)
        indices, count = sample_indices(settings, len(timeline.times), timeline.fps, budget.name)
        chosen = nearest_frames(timeline.times, np.asarray(indices) / timeline.fps)
        found = _decode_chosen(medium, timeline, sorted(set(chosen)), fitter(len(indices)), budget)
        if all(number in found for number in chosen):
            return _clip([found[number] for number in chosen], timeline.times[chosen], timeline.fps, indices, count)
        if timeline.pts is None:
            raise MediaError(
                budget.name, f"only {len(found)} of {len(set(chosen))} chosen frames decode whole", REPLACE
            )
        timeline = None  # the packets promised frames that are never shown: count what decodes instead


def _packet_timeline(medium: Path | bytes, budget: Budget) -> _Timeline | None:
    """The timeline read from packets, without decoding; None where packets do not tell."""
    with opened(medium, budget) as (container, stream):
        timed = container.format.name.split(",")[0] in PACKET_TIMED_FORMATS
        if not timed or stream.codec_context.name not in PACKET_TIMED_CODECS:
            return None
        packets = [
            (packet.pts, packet.is_keyframe, packet.is_discard, packet.duration or 0)
            for packet in container.demux(stream)
            if packet.size
        ]
        if any(packet[0] is None for packet in packets):
            return None
        shown = sorted(packet for packet in packets if not packet[2])
        pts = [packet[0] for packet in shown]
        if not pts or any(earlier == later for earlier, later in pairwise(pts)):
            return None
        _refuse_truncated(container, stream, len(packets), pts, shown[-1][3], budget.name)
        keyframes = sorted({0, *(number for number, packet in enumerate(shown) if packet[1])})
        return _timeline(stream, pts, shown[-1][3], pts, keyframes)


def _decoded_timeline(medium: Path | bytes, budget: Budget) -> _Timeline:
    """The timeline of the frames that decode, one full pass that converts none of them."""
    with opened(medium, budget) as (container, stream):
        shown = [(frame.pts, frame.duration or 0) for frame in container.decode(stream)]
        pts = [frame[0] for frame in shown]
        if not pts:
            raise MediaError(budget.name, "no video frame decodes, and at least one is wanted", REPLACE)
        timed = None not in pts and all(earlier < later for earlier, later in pairwise(pts))
        _refuse_truncated(container, stream, len(pts), pts if timed else None, shown[-1][1], budget.name)
        if timed:
            return _timeline(stream, pts, shown[-1][1])
        fps = float(stream.guessed_rate or stream.average_rate or 0)
        if fps <= 0:
            raise MediaError(budget.name, "it has neither timestamps nor a frame rate", REPLACE)
        return _Timeline(np.arange(len(pts)) / fps, fps)


def _timeline(stream: av.VideoStream, pts: list[int], last_duration: int, *found_by: list[int]) -> _Timeline:
    times = (np.asarray(pts, dtype=np.int64) - pts[0]) * float(stream.time_base)
    declared = float(stream.average_rate or stream.guessed_rate or 0)
    return _Timeline(times, average_fps(times, last_duration * float(stream.time_base), declared), *found_by)


def _refuse_truncated(
    container: Charged, stream, found: int, pts: list[int] | None, last_duration: int, name: str
) -> None:
    """Compare with what the file declares: an edited file is short of one measure, a truncated one of all."""
    shares = {}
    if stream.frames:
        shares[f"{found} of {stream.frames} declared frames"] = found / stream.frames
    declared = declared_duration(container, stream)
    if pts and declared:
        origin = pts[0] if stream.duration is not None else 0  # other declarations count from the container's zero
        length = (pts[-1] + last_duration - origin) * float(stream.time_base)
        shares[f"{length:.2f} of {declared:.2f} declared seconds"] = length / declared
    if shares and max(shares.values()) < MIN_DECODED_SHARE:
        raise MediaError(name, f"the file is truncated: it holds {' and '.join(shares)}", REPLACE)


def _decode_chosen(medium, timeline: _Timeline, numbers: list[int], fit: Fit, budget: Budget) -> dict[int, Tensor]:
    """Resized frames by number, as many as could be found whole."""
    with opened(medium, budget) as (container, stream):
        if timeline.pts is not None:
            pairs = _by_timestamp(container, stream, numbers, timeline)
        else:
            wanted, decoded = set(numbers), enumerate(islice(container.decode(stream), numbers[-1] + 1))
            pairs = ((number, frame) for number, frame in decoded if number in wanted)
        found = {}
        for number, frame in pairs:
            if container.damaged:
                break
            found[number] = fit(_upright(frame, budget.name))
        return found


def _by_timestamp(container, stream, numbers: list[int], timeline: _Timeline) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode forward, seeking where the next wanted keyframe lies far ahead; stop at a frame that never comes whole."""
    position, frames = 0, container.decode(stream)
    for number in numbers:
        keyframe = timeline.keyframes[bisect_right(timeline.keyframes, number) - 1]
        if keyframe - position > SEEK_GAP:
            container.seek(timeline.pts[keyframe], stream=stream, backward=True)
            frames = container.decode(stream)
        frame = next((frame for frame in frames if frame.pts is None or frame.pts >= timeline.pts[number]), None)
        if frame is None or frame.pts != timeline.pts[number]:
            return
        yield number, frame
        position = number


def _upright(frame: av.VideoFrame, name: str) -> Tensor:
    """(3,h,w) uint8 RGB, turned as the file's display matrix says."""
    if frame.rotation % 90:
        raise MediaError(name, f"it is rotated by {frame.rotation} degrees", "Re-encode it upright")
    turned = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
    return torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1).contiguous()
