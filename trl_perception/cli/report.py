"""Write the report of a run: `trl-perception report RUN_DIR [--compare OTHER] [--output FILE]`."""

from .errors import Parser, one_line
from .preflight import require_folder


@one_line("trl-perception report")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="trl-perception report", description=__doc__)
    parser.add_argument("run", help="the output_dir of a run")
    parser.add_argument(
        "--compare", metavar="OTHER", help="another run, to lay its curves over and set its gains beside"
    )
    parser.add_argument("--output", metavar="FILE", help="where to write; report.html in the run's folder by default")
    parser.add_argument("--groups", type=int, help="most recorded groups to show")
    options = parser.parse_args(argv)
    for folder in filter(None, (options.run, options.compare)):
        require_folder(folder)
    from ..reports.html import MOST_GROUPS, write_report  # a slow import, after the options are parsed

    path = write_report(options.run, options.output, compare=options.compare, most_groups=options.groups or MOST_GROUPS)
    print(f"  report  {path}  ({path.stat().st_size / 1e6:.1f} MB, opens in a browser, loads nothing)")


if __name__ == "__main__":
    main()
