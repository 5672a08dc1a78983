"""A folder of decoded media, shared by processes and runs: frames as they were sampled and resized."""

import fcntl
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import av
import torch

from .errors import describe
from .images import from_pixels, resolve, to_pixels
from .limits import Budget
from .loader import MediaRequest, Medium, fingerprint
from .paths import local_path
from .video import VideoClip

FORMAT = 1  # of the files; another number makes other keys
DECODERS = ("trl_perception", "av", "pillow", "pillow-heif", "qwen-vl-utils", "torch", "torchvision")
FRAMES, DIGEST, DRAFT, LOCK = ".frames", ".digest", ".draft", ".lock"
DRAFT_SECONDS = 3600  # after which an unfinished file or a lock is one that a killed process left
SCANS = 1024  # the folder is looked through whenever a process has written this part of its bound
KEPT = 15 / 16  # of the bound, once files are deleted


class MediaCache:
    """Decoded media on disk, by content, settings and versions of the decoders.

    A file holds the frames of one medium: CRC-32 of the rest (4 bytes), length of the header (4 bytes), header (JSON), uint8
    frames. It is written under a name of its own and renamed, so that processes may share the folder. While one of them makes a
    file, others that want it wait. A file that is missing, truncated or damaged is decoded again. Errors are not kept.

    Args:
        folder: created if it is missing. Files in it that are not of a cache are left alone.
        max_bytes: of all files; those used longest ago are deleted. A larger medium is not kept.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int):
        self.folder, self.max_bytes = Path(folder).expanduser().absolute(), max_bytes
        self._unseen = 0  # bytes written since the folder was looked through

    def read(self, request: MediaRequest, threads: int | None = None) -> tuple[Medium, bool]:
        """Return the medium, bit for bit as `request.read` does, and whether it was decoded.

        Raises: MediaError as `request.read`; RuntimeError if the folder cannot be written.
        """
        request = _downloaded(request)
        source = fingerprint(request.source)
        content = self._content(request.source, source)
        if content is None:
            return request.read(threads), True
        path = self._path((content, request.how, _versions()), FRAMES)
        if (kept := _load(path)) is not None:
            return kept, False
        with self._making(path):
            if (kept := _load(path)) is not None:
                return kept, False
            medium = request.read(threads)
            if source == fingerprint(request.source):  # else the file was replaced meanwhile
                self._save(path, medium)
        return medium, True

    def _content(self, source: Any, key: Hashable) -> str | None:
        """Return a digest of a source's content, or None if it is unknown or cannot be read: then reading says why.

        Digests of files are kept by path, size and modification time, so that a file is read for its digest once.

        Args: key: fingerprint of the source.
        """
        if key[0] == "object":
            return None
        if key[0] not in ("path", "frames"):
            return _digest(key)
        note = self._path(key, DIGEST)
        if (digest := _noted(note)) is not None:
            return digest
        with self._making(note):
            if (digest := _noted(note)) is not None:
                return digest
            try:
                digest = _digest(fingerprint(source, named=_file_digest))
            except (OSError, ValueError):
                return None
            self._write(note, digest.encode())
        return digest

    @contextmanager
    def _making(self, path: Path) -> Iterator[None]:
        """Context manager in which one process at a time makes a file; look for the file again in it.

        Others wait once, until the first one is done. If it made no file (an error, a medium that is too large), they then work
        side by side. A thread holds one lock at a time, and the system releases those of a process that is killed.
        """
        lock = path.with_suffix(LOCK)
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = lock.open("ab")
        with file:
            with self._explained():
                first = _lock(file)
            try:
                yield
            finally:
                if first:  # whoever opens another file of this name finds what was made
                    with suppress(OSError):
                        lock.unlink()
                fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open too

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Context manager that says what to do about an OSError."""
        try:
            yield
        except OSError as error:
            raise RuntimeError(
                f"The media cache {self.folder} cannot be written ({error.strerror or error}). Make room there or lower "
                "media_cache_dir_gb, or set media_cache_dir to another folder, or leave it out."
            ) from error

    def _path(self, key: Hashable, suffix: str) -> Path:
        return self.folder / (_digest(key) + suffix)

    def _save(self, path: Path, medium: Medium) -> None:
        facts: dict[str, Any] = {}
        if isinstance(medium, VideoClip):
            facts = {"fps": medium.fps, "indices": medium.indices, "total_frames": int(medium.total_frames)}
            facts["times"] = medium.times.tolist()
        pixels = (medium.frames if facts else to_pixels(medium)).contiguous()
        header = json.dumps({"shape": list(pixels.shape), **facts}).encode()
        header, frames = len(header).to_bytes(4, "little") + header, memoryview(pixels.numpy()).cast("B")
        self._write(path, zlib.crc32(frames, zlib.crc32(header)).to_bytes(4, "little"), header, frames)

    def _write(self, path: Path, *parts: bytes | memoryview) -> None:
        size = sum(map(len, parts))
        if size > self.max_bytes:
            return
        draft = path.with_suffix(f".{uuid4().hex}{DRAFT}")
        with self._explained():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with draft.open("xb") as file:
                    file.writelines(parts)
                draft.replace(path)
                self._unseen += size
                if self._unseen * SCANS >= self.max_bytes:
                    self._unseen = 0
                    self._delete_oldest()
            except OSError:
                with suppress(OSError):
                    draft.unlink()
                raise

    def _delete_oldest(self) -> None:
        """Delete the files used longest ago, if all of them take more than `max_bytes`."""
        files, young = [], time.time() - DRAFT_SECONDS
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.endswith((FRAMES, DIGEST)) or (
                        entry.name.endswith((DRAFT, LOCK)) and status.st_mtime < young
                    ):
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        target = total if total <= self.max_bytes else self.max_bytes * KEPT
        for _, size, path in sorted(files):
            if total <= target:
                return
            total -= size
            with suppress(FileNotFoundError):  # deleted by another process
                os.unlink(path)


def _lock(file: BinaryIO) -> bool:
    """Lock a file, and return True, or wait until another process has unlocked it, and return False."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_SH)
        return False
    return True


def _noted(note: Path) -> str | None:
    """Return the digest that a file holds, or None if it is not there or not whole."""
    with suppress(OSError):
        digest = note.read_text(errors="replace")
        if len(digest) == 64 and digest.isalnum():
            _touch(note)
            return digest
    return None


def _load(path: Path) -> Medium | None:
    """Return what a file holds, or None if it is not there or not whole."""
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(data)
    except OSError:
        return None
    if len(data) < 8 or zlib.crc32(memoryview(data)[4:]) != int.from_bytes(data[:4], "little"):
        return None
    _touch(path)
    end = 8 + int.from_bytes(data[4:8], "little")
    facts = json.loads(data[8:end])
    pixels = torch.frombuffer(data, dtype=torch.uint8, offset=end).view(facts.pop("shape"))
    if not facts:
        return from_pixels(pixels)
    return VideoClip(pixels, torch.tensor(facts.pop("times"), dtype=torch.float64), **facts)


def _touch(path: Path) -> None:
    with suppress(OSError):  # deleted by another process, or a folder that others write
        os.utime(path)


def _downloaded(request: MediaRequest) -> MediaRequest:
    """Return the request with the bytes of a URL, as only they say what its content is. Raises: MediaError."""
    source = request.source
    if isinstance(source, Mapping) and source.get("bytes") is None:
        source = source.get("path")
    if not (isinstance(source, str) and source.startswith(("http://", "https://"))):
        return request
    content = resolve(source, Budget(describe(source), request.limits))
    return replace(request, source={"path": source, "bytes": content})


def _file_digest(source: str | os.PathLike) -> Hashable:
    """Return the key of the bytes of a local file. Raises: OSError or ValueError if there is none, as for a URL among frames."""
    path = os.path.abspath(local_path(source))
    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    with open(path, "rb") as file:
        return "bytes", hashlib.file_digest(file, "sha1").hexdigest()


def _digest(key: Hashable) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()


@cache
def _versions() -> tuple:
    """Return what the pixels of one content and its settings may depend on."""
    found = {}
    for name in DECODERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return FORMAT, platform.machine(), tuple(found.items()), tuple(sorted(av.library_versions.items()))
