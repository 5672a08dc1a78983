"""Train and evaluate methods x seeds x models, and compare them: `trl-perception study --config STUDY [--cell i/n]`."""

import json
import signal
import sys

from .errors import Parser, one_line


@one_line("trl-perception study")
def main(argv: list[str] | None = None) -> None:
    """Run the cells that are not complete, write table, JSON and page of those that are, and print the table.

    Errors: SystemExit with status 1 if a cell failed; the others are run.
    """
    parser = Parser(prog="trl-perception study", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a YAML file, or a shipped study such as study/smoke")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the study, instead of the configuration's")
    parser.add_argument("--workers", type=int, metavar="N", help="cells at a time, instead of the configuration's")
    parser.add_argument("--cell", metavar="i/n", help="run the i-th of n parts of the cells, for one job of a cluster")
    parser.add_argument("--no-run", action="store_true", help="write the results of the cells that are complete")
    options = parser.parse_args(argv)
    from ..study.cells import cells_of, part_of
    from ..study.configuration import read_study

    config = read_study(options.config, output=options.output, workers=options.workers)
    cells = cells_of(config)
    chosen = [] if options.no_run else part_of(cells, options.cell)
    for cell in cells:
        cell.require_own_folder()
    from ..study.running import accelerators, run_cells

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cells' processes end too
    failed = run_cells(chosen, workers=config.workers, threads=config.threads, devices=accelerators()) if chosen else {}
    from ..evaluation.store import write_text
    from ..study.page import render
    from ..study.results import collect
    from ..study.table import as_markdown

    results = collect(config, cells)
    if results["models"]:
        table = as_markdown(results)
        config.output.mkdir(parents=True, exist_ok=True)
        write_text(config.output / "study.json", json.dumps(results, indent=1) + "\n")
        write_text(config.output / "study.md", table)
        write_text(config.output / "study.html", render(results))
        print(f"{table}\n{config.output / 'study.html'}")
    left = len(results["cells"]["missing"])
    print(
        f"{results['cells']['complete']} of {len(cells)} cells are complete{', ' + str(left) + ' are left' if left else ''}."
    )
    if failed:
        raise SystemExit(
            f"{len(failed)} of the cells failed: {'; '.join(failed)}. Correct the cause, and run it again."
        )


if __name__ == "__main__":
    main()
