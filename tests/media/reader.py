"""A separate process that reads media with bounded memory, for inputs that may hang, crash or exhaust memory."""

import multiprocessing
import os
import resource
import time
import traceback
from typing import Any

HEADROOM = 1 << 30  # bytes of address space beyond what the started process has


class Reader:
    """Reads media in a process that is restarted after it hung or died."""

    def __init__(self):
        self._process = None

    def __call__(self, kind: str, source: Any, settings: Any, limits: Any, timeout: float) -> dict[str, Any]:
        """The result of reading a medium: see `outcome`; {"hung": seconds} or {"died": exit code} without a reply."""
        if self._process is None:
            self._start()
        self._connection.send((kind, source, settings, limits))
        if not self._connection.poll(timeout):
            self.stop()
            return {"hung": timeout}
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.stop()
            return {"died": code}

    def _start(self) -> None:
        os.environ["MALLOC_ARENA_MAX"] = "2"  # threads would reserve unused address space
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        if not self._connection.poll(120):
            raise TimeoutError("the reading process did not start")
        assert self._connection.recv() == "ready"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def serve(connection) -> None:
    """Serve requests until the connection is closed."""
    from trl_perception.media import MediaLoader  # with torch and FFmpeg, before memory is bounded

    with open("/proc/self/statm") as file:
        bound = int(file.read().split()[0]) * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    connection.send("ready")
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(outcome(MediaLoader(workers=1, cache_bytes=0), *job))


def outcome(loader, kind: str, source: Any, settings: Any, limits: Any) -> dict[str, Any]:
    """{"error", "seconds"}, or what was decoded: {"means" (F,3), "size", "numbers", "total", "seconds"}; or {"crash"}."""
    import numpy as np
    import torch

    from tests.media.drawn import numbers
    from trl_perception.media import MediaError, MediaRequest

    start = time.monotonic()
    try:
        given = {"settings": settings} if kind == "video" else {}
        (medium,) = loader.load([MediaRequest(kind, source, limits=limits, **given)])
    except BaseException:  # a bug in the tested code: the text is returned, so that the test fails
        return {"crash": traceback.format_exc()}
    found = {"seconds": time.monotonic() - start}
    if isinstance(medium, MediaError):
        return found | {"error": str(medium), "reason": medium.reason, "remedy": medium.remedy}
    if kind == "image":
        frames, total = torch.from_numpy(np.array(medium)).permute(2, 0, 1)[None], 1
    else:
        frames, total = medium.frames, medium.total_frames
    means = frames.float().mean(dim=(2, 3)).tolist()
    carried = numbers(frames) if min(frames.shape[-2:]) > 16 and frames.shape[-1] > 32 else None
    return found | {"means": means, "size": tuple(frames.shape[-2:]), "numbers": carried, "total": total}
