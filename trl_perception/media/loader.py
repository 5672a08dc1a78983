"""Loads many media: decodes in parallel, each distinct medium once, and caches the latest in memory; reads ahead in processes."""

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image

from .errors import MediaError, describe
from .images import from_pixels, read_image, to_pixels
from .limits import MediaLimits, decoder_threads
from .paths import local_path
from .pictures import readable
from .prefetch import ReaderProcesses
from .sampling import SizeLimits
from .settings import VideoSettings, image_bounds
from .video import VideoClip, read_video

MAX_WORKERS = 8

Medium = VideoClip | Image.Image


@dataclass(frozen=True, eq=False)
class MediaRequest:
    """One medium and how to read it.

    Args:
        kind: "image" or "video".
        source: a source of read_image or read_video.
        settings: sampling and size; for an image only the size is used (see `IMAGE_KEYS`).
        factor: sides become multiples of it, patch_size * merge_size of the processor; None if the processor resizes.
        size_limits: (min_pixels, max_pixels) used if settings have none.
        source_fps: frames per second of a list of frames or an array.
        limits: resource limits.
        count: (frames, height, width) of the medium as read -> its visual tokens.
    Raises: ValueError for another kind, or a source_fps that is not above 0.
    """

    kind: str
    source: Any
    settings: VideoSettings = field(default_factory=VideoSettings)
    factor: int | None = 28
    size_limits: SizeLimits | None = None
    source_fps: float = 2.0
    limits: MediaLimits = field(default_factory=MediaLimits)
    count: Callable[[int, int, int], int] | None = field(default=None, compare=False)

    def __post_init__(self):
        if self.kind not in ("image", "video"):
            raise ValueError(f"kind is {self.kind!r}; set it to 'image' or 'video'")
        if not isinstance(self.source_fps, Real) or not self.source_fps > 0:
            raise ValueError(f"source_fps (sample_fps of a block) is {self.source_fps!r}; a number above 0 is wanted")

    @property
    def key(self) -> Hashable:
        """A cache key: content, or path, modification time and size, and every setting.

        Raises: MediaError if the source cannot be read far enough to make a key.
        """
        return fingerprint(self.source), self.how

    @property
    def how(self) -> Hashable:
        """Everything that the result depends on besides the content."""
        limits = self.size_limits
        sizes = None if limits is None else (type(limits).__name__, *limits)  # of a frame, or of a whole clip
        return self.kind, self.settings, self.factor, sizes, self.source_fps, self.limits

    def read(self, threads: int | None = None, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Medium:
        """Decode the medium.

        Args:
            threads: maximum threads of a video's decoder, None for one per processor.
            change: pixels (3,H,W) uint8 of an image or a frame -> the same, before they are resized.
        Raises: MediaError.
        """
        if self.kind == "video":
            return read_video(
                self.source,
                self.settings,
                factor=self.factor,
                size_limits=self.size_limits,
                source_fps=self.source_fps,
                limits=self.limits,
                threads=threads,
                change=change,
            )
        bounds = image_bounds(self.settings)
        bounds |= {"size_limits": self.size_limits, "limits": self.limits}
        return read_image(self.source, factor=self.factor, change=change, **bounds)


class Reading(NamedTuple):
    """What came of a request.

    Args: medium: or why it cannot be read; processed: what the processor made of it, if it was read ahead; decoded: whether
        it was read from its source, not from a cache on disk.
    """

    medium: Medium | MediaError
    processed: Any = None
    decoded: bool = True


def decoded(request: MediaRequest, threads: int | None = None) -> tuple[Medium, bool]:
    """Decode the medium of a request; True, as it was decoded. Raises: MediaError."""
    return request.read(threads), True


class MediaLoader:
    """Reads lists of requests with worker threads and caches the latest results, up to cache_bytes. Thread-safe.

    Args: workers: threads of one call, or processes that read ahead, None for one per processor up to 8, each of which
        decodes with processors / workers threads, at least one; cache_bytes: bytes of decoded media cached between calls, 0
        for none; read: (request, threads) -> the medium and whether it was decoded, as by a [`MediaCache`]; None decodes. The
        results are shared: do not write to them.
    """

    def __init__(
        self,
        workers: int | None = None,
        cache_bytes: int = 1 << 30,
        read: Callable[[MediaRequest, int | None], tuple[Medium, bool]] | None = None,
    ):
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; set it to 1 or more, or None")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes is {cache_bytes}; set it to 0 or more")
        self.workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
        self.threads = decoder_threads(self.workers)
        self.cache_bytes = cache_bytes
        self.read = read or decoded
        self.stats = Counter(decoded=0, cache_hits=0, failed=0)
        self._cache: OrderedDict[Hashable, Medium] = OrderedDict()
        self._held = 0
        self._pending: dict[Hashable, Future] = {}
        self._ahead: dict[Hashable, Future] = {}
        self._processes: ReaderProcesses | None = None
        self._lock = Lock()

    def load(self, requests: Sequence[MediaRequest]) -> list[Medium | MediaError]:
        """Return one result per request, in order. A medium that cannot be read gives its MediaError as the result.

        stats counts decoded (read from their source), cache_hits (distinct requests found in memory), disk_hits (those found on
        disk) and failed (distinct requests with an error; errors are not cached, so the next call tries again).
        """
        return [reading.medium for reading in self.readings(requests)]

    def readings(self, requests: Sequence[MediaRequest]) -> list[Reading]:
        """As `load`, with what the processor made of the media that were read ahead. Raises: RuntimeError if a process died."""
        keys = [self._key(request) for request in requests]
        results: dict[Hashable, Reading | Future] = {}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="media") as pool:
            for key, request in zip(keys, requests, strict=True):
                if not isinstance(key, MediaError) and key not in results:
                    results[key] = self._found_or_started(pool, key, request)
        done = {key: value.result() if isinstance(value, Future) else value for key, value in results.items()}
        return [Reading(key) if isinstance(key, MediaError) else done[key] for key in keys]

    def read_ahead(self, requests: Sequence[MediaRequest], process: Callable[[str, Medium], Any]) -> None:
        """Start to read media in processes, in order, and to process them, for a later `load`; call `close` in the end.

        Media of an earlier call that are not in this one are dropped.

        Args: process: (kind, medium) -> what the processor makes of it; the same in every call. A ValueError of it is left
            to the caller of `load`, who has no result then.
        """
        wanted: dict[Hashable, MediaRequest] = {}
        for request in requests:
            with suppress(MediaError):
                wanted.setdefault(request.key, request)
        with self._lock:
            for key in self._ahead.keys() - wanted.keys():
                self._ahead.pop(key).cancel()
            missing = [key for key in wanted if key not in self._ahead and key not in self._cache]
        for key in missing:
            if hasattr(wanted[key].source, "get_frames_at"):  # a decoder object stays in its process
                continue
            if self._processes is None:
                run = partial(_read_and_process, self.read, process, self.threads)
                self._processes = ReaderProcesses(self.workers, self.threads, run, _received)
            self._ahead[key] = self._processes.submit(replace(wanted[key], count=None))

    def close(self) -> None:
        """End the processes that read ahead; what they read is dropped."""
        processes, self._processes = self._processes, None
        self._ahead.clear()
        if processes is not None:
            processes.close()

    def _key(self, request: MediaRequest) -> Hashable | MediaError:
        try:
            return request.key
        except MediaError as error:
            with self._lock:
                self.stats["failed"] += 1
            return error

    def _found_or_started(self, pool: ThreadPoolExecutor, key: Hashable, request: MediaRequest) -> Reading | Future:
        with self._lock:
            if key in self._ahead:
                return pool.submit(self._taken, key, request, self._ahead.pop(key))
            if key in self._cache:
                self._cache.move_to_end(key)
                self.stats["cache_hits"] += 1
                return Reading(self._cache[key])
            if key not in self._pending:
                self._pending[key] = pool.submit(self._read, key, request)
            return self._pending[key]

    def _taken(self, key: Hashable, request: MediaRequest, ahead: Future) -> Reading:
        reading = ahead.result()
        with self._lock:
            self._count(key, request, reading)
        return reading

    def _read(self, key: Hashable, request: MediaRequest) -> Reading:
        reading = None
        try:
            medium, was_decoded = self.read(request, self.threads)
            reading = Reading(medium, decoded=was_decoded)
        except MediaError as error:
            reading = Reading(error)
        finally:
            with self._lock:
                del self._pending[key]
                if reading is not None:
                    self._count(key, request, reading)
        return reading

    def _count(self, key: Hashable, request: MediaRequest, reading: Reading) -> None:
        if isinstance(reading.medium, MediaError):
            self.stats["failed"] += 1
            return
        self.stats["decoded" if reading.decoded else "disk_hits"] += 1
        self._keep(key, reading.medium, request)

    def _keep(self, key: Hashable, medium: Medium, request: MediaRequest) -> None:
        size = _nbytes(medium)
        if size > self.cache_bytes or hasattr(request.source, "get_frames_at"):  # a decoder's key is only its id
            return
        self._cache[key] = medium
        self._held += size
        while self._held > self.cache_bytes:
            self._held -= _nbytes(self._cache.popitem(last=False)[1])


def _read_and_process(read: Callable, process: Callable, threads: int, request: MediaRequest) -> Reading:
    """What a process does with a request. An image comes back as a tensor, (3,H,W)."""
    try:
        medium, was_decoded = read(request, threads)
    except MediaError as error:
        return Reading(error)
    processed = None
    with suppress(ValueError):
        processed = process(request.kind, medium)
    return Reading(medium if isinstance(medium, VideoClip) else to_pixels(medium), processed, was_decoded)


def _received(reading: Reading) -> Reading:
    """Return a reading of another process with its tensors in memory of this one."""
    medium, processed = reading.medium, reading.processed
    if isinstance(medium, VideoClip):
        medium = replace(medium, frames=medium.frames.clone(), times=medium.times.clone())
    elif isinstance(medium, torch.Tensor):
        medium = from_pixels(medium)
    if processed is not None:
        own = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in processed.fields.items()}
        processed = processed._replace(fields=own)
    return reading._replace(medium=medium, processed=processed)


def _named(source: str | os.PathLike) -> Hashable:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return "url", source
    path = os.path.abspath(local_path(source))
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # reading it will raise the error
        return "path", path, None, None
    return "path", path, status.st_mtime_ns, status.st_size


def fingerprint(source: Any, named: Callable[[str | os.PathLike], Hashable] = _named) -> Hashable:
    """Return a key of a source: path, time and size of a file; URL; sha1 of bytes, images and arrays.

    Args: named: path or http(s) URL -> its key.
    Raises: MediaError for an image whose pixels cannot be read.
    """
    if isinstance(source, Mapping):
        content = source.get("bytes")
        return fingerprint(source.get("path") if content is None else content, named)
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes", hashlib.sha1(source).hexdigest()
    if isinstance(source, str) and source.startswith("data:"):
        return "url", source
    if isinstance(source, str | os.PathLike):
        return named(source)
    if isinstance(source, Image.Image):
        with readable(describe(source)):
            plain = source.convert("RGBA") if source.mode == "P" or source.has_transparency_data else source
            turn = source.getexif().get(ExifTags.Base.Orientation)
            return "image", source.mode, source.size, turn, hashlib.sha1(plain.tobytes()).hexdigest()
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float().numpy() if source.dtype == torch.bfloat16 else source.numpy()
    if isinstance(source, np.ndarray):
        buffer = np.ascontiguousarray(source)
        return "array", buffer.shape, buffer.dtype.str, hashlib.sha1(buffer.data).hexdigest()
    if isinstance(source, Sequence):
        return "frames", tuple(fingerprint(item, named) for item in source)
    return "object", id(source)


def _nbytes(medium: Medium) -> int:
    return medium.nbytes if isinstance(medium, VideoClip) else 3 * medium.width * medium.height
