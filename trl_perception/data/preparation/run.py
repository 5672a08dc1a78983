"""One pass over a data set: record, row, filters, media, shard."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Features
from tqdm import tqdm

from ..adapters import Record, RecordError, Source, get_adapter
from ..templates import templated_prompt
from .filters import RowFilter
from .folder import BLOCKS_WITH_SETTINGS, TEXT_BLOCKS, SplitFolder
from .media_check import MediaChecker
from .options import PrepareOptions, fingerprint
from .summary import summarize, write_card

MALFORMED = "malformed"
BATCH = 64  # records whose media are checked together


def prepare(
    name: str,
    source: Source,
    output: str | Path,
    options: PrepareOptions | None = None,
    *,
    workers: int = 4,
    restart: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write one split of a data set as our rows, and return what was kept and dropped (see `as_text`).

    An interrupted run resumes at the last finished chunk of `shard_size` records when it is called again.

    Args:
        name: key of `ADAPTERS`.
        output: folder; several splits may share it.
        workers: threads that check media.
        restart: delete existing output of this split.
        progress: whether to show a progress bar.
    Errors: RecordError for a record that does not follow the layout (`malformed="error"`); FileNotFoundError for a
        source without its files; ValueError for a folder with other options, or if no row is left.
    """
    adapter, options = get_adapter(name), options or PrepareOptions()
    if adapter.splits and source.split not in adapter.splits and not source.path.is_file():
        raise ValueError(f"{adapter.title} has splits {', '.join(adapter.splits)}; {source.split!r} was asked for.")
    files = adapter.files(source)
    spec = {
        "data_set": name,
        "title": adapter.title,
        "files": [fingerprint(file) for file in files],
        "media": os.path.abspath(source.media or source.folder),
        "options": options.as_json(),
    }
    columns = {"prompt": BLOCKS_WITH_SETTINGS} if adapter.block_settings else {}
    columns |= {"completion": TEXT_BLOCKS} if adapter.warm_up else {}
    folder = SplitFolder(Path(output), source.split, Features(columns))
    finished = folder.open(spec, restart)
    if finished is not None:
        write_card(folder)  # an earlier run may have stopped before this
        return finished

    records, tallies = adapter.read(files[0]), folder.chunks_done()
    worker = _Worker(adapter, source, options, folder, workers)
    done = sum(tally["records"] for tally in tallies)
    kept = sum(tally["kept"] for tally in tallies)
    with tqdm(total=records.count, initial=done, desc=f"{name} {source.split}", disable=not progress) as bar:
        for chunk in _batches(records.read(done), options.shard_size):
            if options.limit is not None and kept >= options.limit:
                break
            rows, tally = worker.chunk(chunk, None if options.limit is None else options.limit - kept, bar)
            folder.save_chunk(len(tallies), rows, tally)
            tallies.append(tally)
            kept += len(rows)
    summary = summarize(folder, tallies, spec)
    if not kept:
        reasons = "; ".join(f"{n} {why} ({summary['examples'][why]})" for why, n in summary["dropped"].items())
        raise ValueError(
            f"No row is left of {summary['records']} records: {reasons or 'the file is empty'}. Correct the source, "
            "its media or the filters, and run with --restart."
        )
    folder.publish(summary)
    write_card(folder)
    return summary


class _Worker:
    """Turns chunks of records into rows, and counts what it drops and why."""

    def __init__(self, adapter, source: Source, options: PrepareOptions, folder: SplitFolder, workers: int):
        self.adapter, self.source, self.options, self.folder = adapter, source, options, folder
        self.filter = RowFilter(options, folder.column("id"))
        self.check = MediaChecker(options, workers)

    def chunk(self, records: Sequence[Record], limit: int | None, bar: tqdm) -> tuple[list[dict], dict[str, Any]]:
        """Return the rows of a chunk, at most `limit`, and its tally."""
        rows: list[dict] = []
        dropped, examples, seen = Counter(), {}, 0
        for batch in _batches(records, BATCH):
            outcomes = list(self._outcomes(batch))
            for outcome in outcomes:
                if limit is not None and len(rows) == limit:
                    break
                seen += 1
                bar.update()
                if isinstance(outcome, dict):
                    rows.append(self._finished(outcome))
                else:
                    reason, detail = outcome
                    dropped[reason] += 1
                    examples.setdefault(reason, detail)
            bar.set_postfix(dropped=sum(dropped.values()), refresh=False)
            if limit is not None and len(rows) == limit:
                break
        return rows, {"records": seen, "kept": len(rows), "dropped": dict(dropped), "examples": examples}

    def _outcomes(self, records: Sequence[Record]) -> Iterator[dict[str, Any] | tuple[str, str]]:
        """Yield, in the order of the records, a row, or (why it is dropped, what was found)."""
        outcomes = [self._converted(record) for record in records]
        rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
        reports = iter(self.check(rows))
        for outcome in outcomes:
            if not isinstance(outcome, dict):
                yield outcome
                continue
            report = next(reports)
            if report.seconds is not None:
                outcome["duration"], outcome["visual_tokens"] = report.seconds, report.tokens
            if report.reason:
                yield report.reason, f"row {outcome['id']}: {report.detail}"
            elif reason := self.filter.reason_of_duration(outcome):
                yield reason, f"row {outcome['id']}: {outcome['duration']:g} s"
            elif not self.filter.is_new(outcome):
                yield "id seen before", f"row {outcome['id']}"
            else:
                yield outcome

    def _converted(self, record: Record) -> dict[str, Any] | tuple[str, str]:
        try:
            row = self.adapter.row(record, self.source)
        except RecordError as error:
            if self.options.malformed == "error":
                raise RecordError(f"{error} --malformed drop leaves such records out.") from error
            return MALFORMED, str(error)
        if row is None:
            return self.adapter.left_out, f"record {record.number}"
        reason = self.filter.reason(row)
        return (reason, f"row {row['id']}") if reason else row

    def _finished(self, row: dict[str, Any]) -> dict[str, Any]:
        template = self.options.template
        row["prompt"] = templated_prompt(row["prompt"], template, row["problem_type"])
        row["prompt_template"] = template
        for column in ("videos", "images"):
            row[column] = [self._stored(row["id"], number, medium) for number, medium in enumerate(row[column])]
        return row

    def _stored(self, name: str, number: int, medium: str | bytes) -> str:
        if isinstance(medium, bytes):
            return self.folder.keep_image(name, number, medium)
        return self.folder.stored(medium, self.options.relative_media)


def _batches(items: Iterable[Record], size: int) -> Iterator[list[Record]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
