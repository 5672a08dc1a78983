"""Reads selected frames and their times from a file, URL, bytes, list of frames or array, with PyAV."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional
from transformers.video_utils import VideoMetadata

from .container import REPLACE, BudgetedContainer, opened
from .display import upright
from .errors import MediaError, describe
from .images import array_frames, as_uint8, listed_frames, resolve
from .limits import Budget, MediaLimits
from .sampling import VideoSettings, frame_size, sample_indices, thin_indices
from .timeline import Entry, Timeline, decoded_timeline, packet_timeline

SEEK_GAP = 32  # a seek is cheaper than continued decoding if the next keyframe is at least so many frames ahead
DECODER_BATCH = 16  # full-size frames requested from a decoder object at once

Fit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class VideoClip:
    """The frames kept of a clip. Clips are shared by a cache and by the rows of a group: do not write to them.

    Args:
        frames: (F,3,H,W) uint8, RGB, resized.
        times: (F,) float64, seconds at which each frame is shown; the file's first shown frame is at 0.
        fps: average frames per second of the source.
        indices: F frame numbers such that index / fps is the requested time. With a constant frame rate they
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
        """Metadata for a processor: sampled_fps = F / total_frames * fps, timestamps = indices / fps."""
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
    factor: int | None = 28,
    size_limits: tuple[int | None, int | None] | None = None,
    source_fps: float = 2.0,
    limits: MediaLimits | None = None,
    threads: int | None = None,
    change: Fit | None = None,
) -> VideoClip:
    """Decode the frames that settings select, resized with antialiased bicubic interpolation.

    frame[k] = the source's last frame with a time <= indices[k] / fps: the one on the screen then, also at a variable rate

    Args:
        source: path, file:// or http(s) URL, bytes, {"path", "bytes"}, a list of frames (each as read_image takes), an
            array (F,H,W,3) or (F,3,H,W) of uint8 or floats in [0, 1], or a decoder object with torchcodec's metadata
            and get_frames_at. Lists and arrays keep all their frames, up to nframes or max_frames.
        settings: sampling and size; None means VideoSettings().
        factor: frame sides become multiples of it, patch_size * merge_size of the processor.
        size_limits: the processor's (min_pixels, max_pixels) of one frame, used if settings have none.
        source_fps: frames per second at which a list or array was sampled; ignored for files.
        limits: resource limits, None means MediaLimits().
        threads: maximum threads of a file's decoder, None for one per processor.
        change: frame (3,H,W) uint8 -> the same, before it is resized; called in the order in which frames are decoded.
    Raises: MediaError for a source that cannot be read completely: missing, truncated, damaged, without video, out of
        range, or past a limit.
    Source: qwen_vl_utils.vision_process.fetch_video. Differs: returns uint8; times come from presentation timestamps;
        the display matrix is applied; a clip that fails is not replaced.
    """
    settings = settings or VideoSettings()
    name = describe(source)
    budget = Budget(name, limits, threads)
    if not source_fps > 0:
        raise ValueError(f"source_fps is {source_fps}; set it to the frames per second of {name}")

    def fitter(nframes: int) -> Fit:
        size: list[int] = []
        bounds = {"factor": factor, "size_limits": size_limits, "source": name}

        def fit(frame: Tensor) -> Tensor:  # one size for the clip, that of its first frame
            frame = frame if change is None else change(frame)
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
    """Return the frames of a file that are on screen at given times, for display: (3,h,w) uint8 RGB, one per time.

    Args:
        source: path, file:// or http(s) URL, bytes, or {"path", "bytes"}.
        times: seconds from the file's first frame, in any order.
        longest_side: pixels; larger frames are reduced.
        limits: resource limits, None means MediaLimits().
    Raises: MediaError as [`read_video`].
    """
    budget = Budget(describe(source), limits)
    medium = resolve(source, budget)

    def fit(frame: Tensor) -> Tensor:
        scale = min(1.0, longest_side / max(frame.shape[-2:]))
        return functional.resize(frame, [max(1, round(side * scale)) for side in frame.shape[-2:]], antialias=True)

    for timeline in _timelines(medium, budget):
        chosen = timeline.shown_at(np.asarray(times, np.float64))
        found = _decode_chosen(medium, timeline, set(chosen), fit, budget)
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


def _from_file(
    medium: Path | bytes, settings: VideoSettings, fitter: Callable[[int], Fit], budget: Budget
) -> VideoClip:
    for timeline in _timelines(medium, budget):
        indices, count = sample_indices(settings, len(timeline.times), timeline.fps, budget.name)
        chosen = timeline.shown_at(np.asarray(indices) / timeline.fps)
        found = _decode_chosen(medium, timeline, set(chosen), fitter(len(indices)), budget)
        if all(number in found for number in chosen):
            return _clip([found[number] for number in chosen], timeline.times[chosen], timeline.fps, indices, count)
    raise MediaError(budget.name, f"only {len(found)} of {len(set(chosen))} chosen frames decode whole", REPLACE)


def _timelines(medium: Path | bytes, budget: Budget) -> Iterator[Timeline]:
    """Yield the timeline of the packets; if these lack times or include hidden frames, also that of decoded frames."""
    with opened(medium, budget) as (container, stream):
        timeline = packet_timeline(container, stream, budget.name)
    if timeline.packets is not None:
        yield timeline
    with opened(medium, budget) as (container, stream):
        yield decoded_timeline(container, stream, budget.name, timeline.from_keyframe)


def _decode_chosen(medium, timeline: Timeline, numbers: set[int], fit: Fit, budget: Budget) -> dict[int, Tensor]:
    """Return resized frames by number, as many as were found undamaged."""
    found, to_rgb = {}, VideoReformatter()
    with opened(medium, budget) as (container, stream):
        if timeline.packets is None:
            pairs = enumerate(container.decode(stream, timeline.from_keyframe))
        else:
            pairs = _by_timestamp(container, stream, sorted(numbers), timeline)
        for position, frame in pairs:
            if position in numbers:
                if container.damaged:
                    break
                found[position] = fit(upright(frame, budget.name, to_rgb))
                if len(found) == len(numbers):
                    break
    return found


def _by_timestamp(container, stream, numbers: list[int], timeline: Timeline) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield numbered frames, seeking to the keyframe of a number if that is far ahead. Stops at a missing or unordered
    frame: then its packets, or those that a seek skipped, do not match the frames shown."""
    packets = timeline.packets
    keyframes = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    number_of = {packets[keyframe].pts: keyframe for keyframe in keyframes}
    position, frames = 0, container.decode(stream, timeline.from_keyframe)
    with suppress(av.error.FFmpegError):
        for number in numbers:
            before = keyframes[max(0, (count := bisect_right(keyframes, number)) - 2) : count]
            if before and before[-1] - position > SEEK_GAP:
                frames = _from_keyframe(container, stream, [packets[keyframe] for keyframe in reversed(before)])
                first = next(frames, None)
                if first is None or first.pts not in number_of:
                    return
                position, frames = number_of[first.pts], chain([first], frames)
            for frame in islice(frames, max(0, number + 1 - position)):
                if frame.pts != packets[position].pts:
                    return
                yield position, frame
                position += 1


def _from_keyframe(
    container: BudgetedContainer, stream: av.VideoStream, targets: list[Entry]
) -> Iterator[av.VideoFrame]:
    """Decode from a keyframe: the first target that a seek finds, or one before it. Containers seek by pts or dts."""
    for target, by in product(targets, ("pts", "dts")):
        with suppress(av.error.FFmpegError):  # a container without seeking
            container.seek(getattr(target, by) or 0, stream=stream, backward=True)
        frames = container.decode(stream, from_keyframe=True, key_pts=target.pts)
        if (first := next(frames, None)) is not None:
            return chain([first], frames)
    return iter(())
