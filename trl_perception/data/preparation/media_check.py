"""Checks that a row's media exist and decode, and computes their duration and number of visual tokens."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...media import MediaError, MediaRequest, conversation, media_blocks
from ...media.limits import decoder_threads
from ...media.probe import expected_tokens, probe, read_tokens
from ..adapters.source import URLS
from .options import PrepareOptions

MISSING, UNREADABLE = "media missing", "media unreadable"


@dataclass(frozen=True)
class MediaReport:
    """Seconds of video and visual tokens, None if not checked; or why the media cannot be used."""

    seconds: float | None = None
    tokens: int | None = None
    reason: str = ""
    detail: str = ""


class MediaChecker:
    """Checks the media of many rows with threads; a medium shared by rows with the same settings is checked once."""

    def __init__(self, options: PrepareOptions, workers: int):
        self.options = options
        self.workers = workers
        self.threads = decoder_threads(workers)
        self._known: dict[Any, MediaReport] = {}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[MediaReport]:
        """Return one report per row, over all its media; the first failing medium determines the reason."""
        if self.options.check == "none":
            return [MediaReport() for _ in rows]
        requests = [[self.options.media.request(block) for block in media_blocks(conversation(row))] for row in rows]
        new = {_key(request): request for of_row in requests for request in of_row if _key(request) not in self._known}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="check") as pool:
            reports = dict(zip(new, pool.map(self._look, new.values()), strict=True))
        # Encoded bytes are not cached: they are large, and no other row shares them.
        self._known.update({key: report for key, report in reports.items() if not isinstance(key[1], bytes)})
        return [
            _joined([reports.get(_key(request)) or self._known[_key(request)] for request in of_row])
            for of_row in requests
        ]

    def _look(self, request: MediaRequest) -> MediaReport:
        medium = request.source
        is_path = isinstance(medium, str) and not medium.startswith(URLS)
        if is_path and not os.path.exists(medium):
            return MediaReport(reason=MISSING, detail=f"{medium} does not exist")
        if self.options.check == "exists" and not is_path and isinstance(medium, str):
            return MediaReport()  # a URL: only decoding fetches it
        try:
            if self.options.check == "decode":
                found = request.read(self.threads)
                seconds = found.total_frames / found.fps if request.kind == "video" else 0.0
                return MediaReport(seconds, read_tokens(found, request))
            facts = probe(request.kind, medium, request.limits)
            return MediaReport(facts.seconds, expected_tokens(facts, request))
        except MediaError as error:
            return MediaReport(reason=UNREADABLE, detail=str(error))


def _key(request: MediaRequest) -> tuple:
    return request.kind, request.source, request.settings, request.source_fps


def _joined(reports: Sequence[MediaReport]) -> MediaReport:
    failed = next((report for report in reports if report.reason), None)
    if failed:
        return failed
    if any(report.tokens is None for report in reports):
        return MediaReport()
    return MediaReport(sum(r.seconds for r in reports), sum(r.tokens for r in reports))
