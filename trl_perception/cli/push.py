"""Push a finished run to the Hub: `trl-perception push RUN_DIR [USER/NAME]`."""

from .errors import Parser, one_line


@one_line("trl-perception push")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="trl-perception push", description=__doc__)
    parser.add_argument("folder", help="the output_dir of a finished run")
    parser.add_argument("repo", nargs="?", help="user/name or name; the folder's name by default")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="the branch, main by default")
    options = parser.parse_args(argv)
    from ..hub import UploadError, publish  # a slow import, after the options are parsed

    try:
        url = publish(
            options.folder, options.repo, private=options.private, revision=options.revision, message="Upload a run"
        )
    except UploadError as error:
        raise SystemExit(str(error)) from error
    print(f"pushed  {url}")


if __name__ == "__main__":
    main()
