"""What a command line may say of data, judged without torch and datasets: paths, and the choices of a preparation."""

from pathlib import Path

LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
CHECKS = ("none", "exists", "decode")
MALFORMED = ("error", "drop")


def require_dataset(name: str) -> None:
    """Refuse a path at which there is nothing. Errors: FileNotFoundError with the folder that was looked from."""
    path = Path(name).expanduser()
    if (name.startswith((".", "/", "~")) or path.suffix in LOADERS) and not path.exists():
        raise FileNotFoundError(f"Dataset file or folder {name} does not exist (looked from {Path.cwd()}).")
