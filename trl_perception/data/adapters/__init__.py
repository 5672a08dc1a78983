"""Adapters that convert published data sets to our rows: one short file per layout, one registry."""

import difflib

from .adapter import Adapter
from .images import GEOMETRY3K, VIRL39K
from .jsonl import JSONL
from .next_gqa import NEXT_GQA, NEXT_GQA_GROUNDING
from .next_qa import NEXT_QA
from .record import Record, RecordError
from .seed_bench_r1 import SEED_BENCH_R1
from .source import Records, Source
from .video_r1 import VIDEO_R1, VIDEO_R1_COT

__all__ = ["ADAPTERS", "Adapter", "Record", "RecordError", "Records", "Source", "get_adapter"]

ADAPTERS: dict[str, Adapter] = {
    "video-r1": VIDEO_R1,
    "video-r1-cot": VIDEO_R1_COT,
    "seed-bench-r1": SEED_BENCH_R1,
    "next-qa": NEXT_QA,
    "next-gqa": NEXT_GQA,
    "next-gqa-grounding": NEXT_GQA_GROUNDING,
    "virl39k": VIRL39K,
    "geometry3k": GEOMETRY3K,
    "jsonl": JSONL,
}


def get_adapter(name: str) -> Adapter:
    """Return an adapter by name. Errors: ValueError with the nearest name."""
    if name not in ADAPTERS:
        nearest = difflib.get_close_matches(name.lower(), ADAPTERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown data set {name!r}; did you mean {nearest!r}? Known: {', '.join(ADAPTERS)}. "
            "Your own data come as jsonl (docs/data.md)."
        )
    return ADAPTERS[name]
