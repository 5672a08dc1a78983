"""Checks of a command line's data options without torch and datasets: paths, and the choices of a preparation."""

from pathlib import Path

LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
CHECKS = ("none", "exists", "decode")
MALFORMED = ("error", "drop")


def require_dataset(name: str) -> None:
    """Reject a path that does not exist. Errors: FileNotFoundError with the working directory."""
    path = Path(name).expanduser()
    if (name.startswith((".", "/", "~")) or path.suffix in LOADERS) and not path.exists():
        raise FileNotFoundError(f"Dataset file or folder {name} does not exist (looked from {Path.cwd()}).")
