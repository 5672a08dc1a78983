"""Loads many media: decodes in parallel, each distinct medium once, and caches the latest in memory."""

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Real
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from .errors import MediaError, describe
from .images import read_image
from .limits import MediaLimits, decoder_threads
from .paths import local_path
from .pictures import readable
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
        sizes = None if self.size_limits is None else tuple(self.size_limits)
        return self.kind, fingerprint(self.source), self.settings, self.factor, sizes, self.source_fps, self.limits

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


class MediaLoader:
    """Reads lists of requests with worker threads and caches the latest results, up to cache_bytes. Thread-safe.

    Args: workers: threads of one call, None for one per processor up to 8, each of which decodes with processors /
        workers threads, at least one; cache_bytes: bytes of decoded media cached between calls, 0 for none. The results
        are shared: do not write to them.
    """

    def __init__(self, workers: int | None = None, cache_bytes: int = 1 << 30):
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; set it to 1 or more, or None")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes is {cache_bytes}; set it to 0 or more")
        self.workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
        self.threads = decoder_threads(self.workers)
        self.cache_bytes = cache_bytes
        self.stats = Counter(decoded=0, cache_hits=0, failed=0)
        self._cache: OrderedDict[Hashable, Medium] = OrderedDict()
        self._held = 0
        self._pending: dict[Hashable, Future] = {}
        self._lock = Lock()

    def load(self, requests: Sequence[MediaRequest]) -> list[Medium | MediaError]:
        """Return one result per request, in order. A medium that cannot be read gives its MediaError as the result.

        stats counts decoded (read from their source), cache_hits (distinct requests found in memory) and failed (distinct
        requests with an error; errors are not cached, so the next call tries again).
        """
        keys = [self._key(request) for request in requests]
        results: dict[Hashable, Medium | MediaError | Future] = {}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="media") as pool:
            for key, request in zip(keys, requests, strict=True):
                if not isinstance(key, MediaError) and key not in results:
                    results[key] = self._cached_or_started(pool, key, request)
        done = {key: value.result() if isinstance(value, Future) else value for key, value in results.items()}
        return [key if isinstance(key, MediaError) else done[key] for key in keys]

    def _key(self, request: MediaRequest) -> Hashable | MediaError:
        try:
            return request.key
        except MediaError as error:
            with self._lock:
                self.stats["failed"] += 1
            return error

    def _cached_or_started(self, pool: ThreadPoolExecutor, key: Hashable, request: MediaRequest) -> Medium | Future:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                self.stats["cache_hits"] += 1
                return self._cache[key]
            if key not in self._pending:
                self._pending[key] = pool.submit(self._read, key, request)
            return self._pending[key]

    def _read(self, key: Hashable, request: MediaRequest) -> Medium | MediaError:
        medium: Medium | MediaError | None = None
        try:
            medium = request.read(self.threads)
        except MediaError as error:
            medium = error
        finally:
            with self._lock:
                del self._pending[key]
                if isinstance(medium, MediaError):
                    self.stats["failed"] += 1
                elif medium is not None:
                    self.stats["decoded"] += 1
                    self._keep(key, medium, request)
        return medium

    def _keep(self, key: Hashable, medium: Medium, request: MediaRequest) -> None:
        size = _nbytes(medium)
        if size > self.cache_bytes or hasattr(request.source, "get_frames_at"):  # a decoder's key is only its id
            return
        self._cache[key] = medium
        self._held += size
        while self._held > self.cache_bytes:
            self._held -= _nbytes(self._cache.popitem(last=False)[1])


def fingerprint(source: Any) -> Hashable:
    """Return a key of a source: path, time and size of a file; URL; sha1 of bytes, images and arrays.

    Raises: MediaError for an image whose pixels cannot be read.
    """
    if isinstance(source, Mapping):
        content = source.get("bytes")
        return fingerprint(source.get("path") if content is None else content)
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes", hashlib.sha1(source).hexdigest()
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return "url", source
    if isinstance(source, str | os.PathLike):
        path = os.path.abspath(local_path(source))
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # reading it will raise the error
            return "path", path, None, None
        return "path", path, status.st_mtime_ns, status.st_size
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
        return "frames", tuple(fingerprint(item) for item in source)
    return "object", id(source)


def _nbytes(medium: Medium) -> int:
    return medium.nbytes if isinstance(medium, VideoClip) else 3 * medium.width * medium.height
