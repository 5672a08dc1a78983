"""One evaluation from settings to summary, alone or as one of several processes."""

import json
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .. import __version__
from .figures import Figures, as_json, figures, row_values
from .model import weights_digest
from .predict import complete_batches
from .rows import plan, read_rows
from .scoring import reward_functions
from .settings import EvaluationSettings
from .store import SUMMARY, PredictionStore, schema, write_text

PATIENCE = timedelta(hours=12)
"""Timeout for waiting for other processes, which complete different rows."""

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "av", "qwen-vl-utils")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: the content of `summary.json`, the figures, and the predictions, one per row."""

    summary: dict[str, Any]
    figures: Figures
    predictions: pa.Table


def evaluate(settings: EvaluationSettings) -> Evaluation | None:
    """Generate and score completions of every row, resume an interrupted evaluation, and write predictions and summary.

    Batches are distributed over processes; the completions do not depend on the number of processes.

    Returns: None in all processes except the main one.
    Errors: ValueError for an output folder that holds something else; `UnusableSampleError` for media that cannot be
        used, if `on_bad_media` is "error".
    """
    # Without `cpu`, each of several processes on a machine without accelerators would start as a single process.
    on_cpu = (
        settings.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    )
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    device = _device(settings, state)
    with state.main_process_first():
        rows = read_rows(settings)
        planned = plan(rows, settings.batch_size)
    functions = reward_functions(settings.rewards, rows)
    store = PredictionStore(settings.output, len(planned.batches), schema(list(functions), settings.by))
    if state.is_main_process:
        store.claim(
            settings.of_predictions()
            | {"device": device.type, "rows": len(rows), "rows_digest": planned.digest}
            | {"weights": weights_digest(settings), "versions": versions()}
        )
    state.wait_for_everyone()
    pending = store.pending()[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # so that no process writes while another reads what is pending
    if pending:
        complete_batches(settings, device, rows, planned, pending, functions, store, bar=state.is_main_process)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    predictions = store.merge()
    table = figures(predictions, row_values(predictions), settings.by, resamples=settings.resamples, seed=settings.seed)
    summary = summarize(settings, predictions, table)
    write_text(Path(settings.output) / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return Evaluation(summary, table, predictions)


def summarize(settings: EvaluationSettings, predictions: pa.Table, table: Figures) -> dict[str, Any]:
    """Return settings, versions, counts, rows left out with their reasons, and figures with their intervals."""
    left_out = [row for row in predictions.select(["id", "left_out"]).to_pylist() if row["left_out"]]
    return {
        "settings": settings.of_predictions(),
        "versions": versions(),
        "rows": len(predictions),
        "left_out": {"rows": len(left_out), "reasons": {row["id"]: row["left_out"] for row in left_out}},
        "intervals": {"confidence": 0.95, "method": "percentile bootstrap over rows", "resamples": settings.resamples},
        "figures": as_json(table),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    return {"trl_perception": __version__} | {name: version(name) for name in PACKAGES}


def _device(settings: EvaluationSettings, state: PartialState) -> torch.device:
    if settings.device is None:
        return state.device
    if state.num_processes > 1 and settings.device != "cpu":
        raise ValueError(
            f"device is {settings.device!r} with {state.num_processes} processes, which would share it. Leave device "
            "out: accelerate gives each process its own."
        )
    return torch.device(settings.device)
