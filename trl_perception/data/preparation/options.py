"""Options of `trl-perception prepare`, and which of them must not change when a run resumes."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...media import MediaLimits, MediaSettings, ProcessorSizes, VideoSettings
from ..adapters.rows import KNOWN_TYPES
from ..names import CHECKS, MALFORMED
from ..templates import get_template


@dataclass(frozen=True)
class PrepareOptions:
    """Options to check, filter and write rows.

    Args:
        check: of media: "none"; "exists", which also reads each file's header; "decode", which decodes the frames that
            training will sample.
        malformed: what to do with a record that does not follow the layout: "error" stops and names it,
            "drop" counts it. A run that stopped may resume with the other.
        limit: maximum number of rows.
        problem_types: types to keep, None for all.
        min_duration, max_duration: bounds on a row's seconds of video; rows without video are kept.
        pass_rates: parquet or JSONL file with a model's pass rate for each row.
        pass_rate_columns: its columns: the row's id, and the rate in [0, 1].
        min_pass_rate, max_pass_rate: bounds of the rates to keep, both inclusive.
        template: prompt template that is added to the prompts.
        video, image_limits: sampling and sizes, for "decode" and for the count of visual tokens.
        media_limits: resource limits for reading one medium.
        sizes: of the processor used in training, which apply if nothing else is set.
        relative_media: write every path relative to the output folder, so that it can be moved with the media.
        shard_size: records per chunk; an interrupted run resumes after the last finished chunk.
    """

    check: str = "exists"
    malformed: str = "error"
    limit: int | None = None
    problem_types: tuple[str, ...] | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    pass_rates: Path | None = None
    pass_rate_columns: tuple[str, str] = ("id", "pass_rate")
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    template: str = "none"
    video: VideoSettings = field(default_factory=VideoSettings)
    image_limits: tuple[int | None, int | None] = (None, None)
    media_limits: MediaLimits = field(default_factory=MediaLimits)
    sizes: ProcessorSizes = field(default_factory=ProcessorSizes)
    relative_media: bool = False
    shard_size: int = 2000

    def __post_init__(self):
        get_template(self.template)
        for name, known in (("check", CHECKS), ("malformed", MALFORMED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; one of {', '.join(known)} is wanted.")
        for problem_type in self.problem_types or ():
            if problem_type not in KNOWN_TYPES:
                raise ValueError(f"unknown problem type {problem_type!r}; known: {', '.join(KNOWN_TYPES)}.")
        for name in ("limit", "shard_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 1 or more is wanted.")
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ValueError(
                f"min_pass_rate is {self.min_pass_rate} and max_pass_rate {self.max_pass_rate}; "
                "0 <= min_pass_rate <= max_pass_rate <= 1 is wanted."
            )
        if self.pass_rates is None and (self.min_pass_rate, self.max_pass_rate) != (0.0, 1.0):
            raise ValueError("min_pass_rate and max_pass_rate need pass_rates: the file with a rate for each row.")
        low, high = self.min_duration, self.max_duration
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_duration is {low}, above max_duration {high}; lower the one or raise the other.")

    @property
    def media(self) -> MediaSettings:
        """Return sampling, sizes and limits as the prompt preparer uses them in training."""
        return MediaSettings(self.video, *self.image_limits, self.media_limits, self.sizes)

    def as_json(self) -> dict[str, Any]:
        """Return the options that all chunks of a run must share as JSON; a file is given by name and digest."""
        values = asdict(self)
        del values["malformed"]
        for rule in values["sizes"].values():
            del rule["tokens"]  # a function of the processor, which the sizes stand for
        values["pass_rates"] = self.pass_rates and fingerprint(self.pass_rates)
        return values


def fingerprint(file: Path) -> list[str]:
    """Return [name, SHA-256 of the content]. Errors: FileNotFoundError."""
    with file.open("rb") as content:
        return [file.name, hashlib.file_digest(content, "sha256").hexdigest()]
