"""Do a row's media exist and decode, how long are they, and how many visual tokens will they make?"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...media import MediaError, MediaRequest
from ...media.limits import decoder_threads
from ...media.probe import QWEN_PIXELS, clip_tokens, probe, visual_tokens
from ..adapters.source import URLS
from .options import PrepareOptions

MISSING, UNREADABLE = "media missing", "media unreadable"
FACTOR = 28  # patch_size * merge_size of Qwen2-VL and Qwen2.5-VL


@dataclass(frozen=True)
class MediaReport:
    """seconds of video and visual tokens, None where they were not looked at; or why the media cannot be used."""

    seconds: float | None = None
    tokens: int | None = None
    reason: str = ""
    detail: str = ""


class MediaChecker:
    """Looks at the media of many rows with threads; a medium that rows share is looked at once."""

    def __init__(self, options: PrepareOptions, workers: int):
        self.options = options
        self.workers = workers
        self.threads = decoder_threads(workers)
        self._known: dict[Any, MediaReport] = {}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[MediaReport]:
        """One report a row, over all its media; the first medium that fails decides."""
        if self.options.check == "none":
            return [MediaReport() for _ in rows]
        media = [[(kind, medium) for kind in ("video", "image") for medium in row[f"{kind}s"]] for row in rows]
        new = list(dict.fromkeys(medium for of_row in media for medium in of_row if medium not in self._known))
        with ThreadPoolExecutor(self.workers, thread_name_prefix="check") as pool:
            reports = dict(zip(new, pool.map(lambda medium: self._look(*medium), new), strict=True))
        # Encoded bytes are not kept: no other row will have them, and they are large.
        self._known.update({key: report for key, report in reports.items() if not isinstance(key[1], bytes)})
        return [_joined([reports.get(medium) or self._known[medium] for medium in of_row]) for of_row in media]

    def _look(self, kind: str, medium: str | bytes) -> MediaReport:
        is_path = isinstance(medium, str) and not medium.startswith(URLS)
        if is_path and not os.path.exists(medium):
            return MediaReport(reason=MISSING, detail=f"{medium} does not exist")
        if self.options.check == "exists" and not is_path and isinstance(medium, str):
            return MediaReport()  # a URL: only decoding fetches it
        settings, sizes, limits = self.options.video, self.options.image_limits, self.options.media_limits
        try:
            if self.options.check == "decode" and kind == "video":
                clip = MediaRequest("video", medium, settings, FACTOR, QWEN_PIXELS, limits=limits).read(self.threads)
                return MediaReport(clip.total_frames / clip.fps, clip_tokens(clip, FACTOR))
            if self.options.check == "decode":
                MediaRequest("image", medium, limits=limits).read()
            facts = probe(kind, medium, limits)
            return MediaReport(facts.seconds, visual_tokens(facts, settings, image_limits=sizes, factor=FACTOR))
        except MediaError as error:
            return MediaReport(reason=UNREADABLE, detail=str(error))


def _joined(reports: Sequence[MediaReport]) -> MediaReport:
    failed = next((report for report in reports if report.reason), None)
    if failed:
        return failed
    if any(report.tokens is None for report in reports):
        return MediaReport()
    return MediaReport(sum(r.seconds for r in reports), sum(r.tokens for r in reports))
