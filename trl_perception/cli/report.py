"""Write the report of a run: `trl-perception report RUN_DIR [--compare OTHER] [--output FILE]`."""

import argparse

from ..reports.html import MOST_GROUPS, write_report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="trl-perception report", description=__doc__)
    parser.add_argument("run", help="the output_dir of a run")
    parser.add_argument(
        "--compare", metavar="OTHER", help="another run, to lay its curves over and set its gains beside"
    )
    parser.add_argument("--output", metavar="FILE", help="where to write; report.html in the run's folder by default")
    parser.add_argument("--groups", type=int, default=MOST_GROUPS, help="most recorded groups to show")
    options = parser.parse_args(argv)
    path = write_report(options.run, options.output, compare=options.compare, most_groups=options.groups)
    print(f"  report  {path}  ({path.stat().st_size / 1e6:.1f} MB, opens in a browser, loads nothing)")


if __name__ == "__main__":
    main()
