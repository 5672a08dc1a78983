"""Uploads a finished run to the Hub: selects files, merges adapters, and reports failures in one message."""

import glob
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from .provenance import HIDDEN, without_token

# Files for loading, for the card or for another run; logs, checkpoints, completions and pickles are not uploaded.
PUBLISHED_ENDINGS = (".safetensors", ".json", ".jinja", ".txt", ".model")
PUBLISHED_NAMES = ("README.md", "recipe.yaml", "reward_curve.png", "report.html")
ADAPTER = "adapter"


# Answers of the Hub, connections, files and metadata that it refuses, its own storage client.
FAILURES = (HTTPError, OSError, ValueError, RuntimeError)


class UploadError(RuntimeError):
    """A failed upload; its message says what to do."""


def published(folder: str | Path) -> list[str]:
    """Return the files of a run to upload, relative to its folder."""
    folder = Path(folder)
    files = [
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name != "run.json"  # facts of the local run
        and (path.name in PUBLISHED_NAMES or path.suffix in PUBLISHED_ENDINGS)
    ]
    adapter = (path for path in (folder / ADAPTER).glob("*") if path.suffix in PUBLISHED_ENDINGS)
    return sorted(str(path.relative_to(folder)) for path in [*files, *adapter])


def publish(
    folder: str | Path,
    repo: str | None = None,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "End of training",
) -> str:
    """Upload a run's folder to a repository, which is created if it does not exist.

    Args:
        folder: the output folder of a run.
        repo: `user/name` or `name`; the folder's name by default.
        token: None uses the token of the login, or `HF_TOKEN`.
        private: whether a new repository is private; None uses the account's default.
        revision: the branch, `main` by default.
    Returns: the repository's URL.
    Errors: UploadError for any failure; the folder is not modified. FileNotFoundError for a folder without weights.
    """
    folder = Path(folder)
    files = published(folder) if folder.is_dir() else []
    if not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors). Name the output_dir of a finished run.")
    api, repo = HfApi(library_name="trl_perception"), repo or folder.resolve().name
    try:
        url = api.create_repo(repo, token=token, private=private, exist_ok=True)
        # A repository with an adapter at its root would load that instead of merged weights.
        stale = ["adapter_*"] if (folder / ADAPTER).is_dir() else None
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            delete_patterns=stale,
            commit_message=message,
            token=token,
            revision=revision,
        )
    except FAILURES as error:
        raise UploadError(
            f"The upload of {folder} to {repo} failed: {_reason(error, token)} The files in {folder} are whole; "
            f"`trl-perception push {folder} {repo}` tries again."
        ) from error
    return str(url)


def make_repository(repo: str, *, token: str | None = None, private: bool | None = None) -> None:
    """Create the repository for a run if it does not exist (see [`publish`] for the arguments).

    Errors: UploadError for any failure.
    """
    try:
        HfApi(library_name="trl_perception").create_repo(repo, token=token, private=private, exist_ok=True)
    except FAILURES as error:
        raise UploadError(
            f"{repo} cannot be pushed to: {_reason(error, token)} Log in with `hf auth login` or set HF_TOKEN to a token that "
            "may write, see to the connection, or unset push_to_hub and push later with `trl-perception push`."
        ) from error


def merge_adapter(
    folder: str | Path,
    base: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Merge the adapter in a folder into its base model: merged weights in the folder, the adapter under `adapter/`.

    Args:
        folder: the folder with `adapter_config.json`.
        base, revision: the model that the adapter was trained on, loaded again, unquantized.
        dtype: its dtype, as in a recipe.
        trust_remote_code: whether to run code from the model's repository.
    """
    from peft import PeftModel
    from trl.trainer.utils import create_model_from_path

    folder = Path(folder)
    kwargs = {"revision": revision, "trust_remote_code": trust_remote_code, "device_map": None}
    model = create_model_from_path(base, dtype=dtype or "float32", **kwargs)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)
    (folder / ADAPTER).mkdir(exist_ok=True)
    for path in folder.glob("adapter_*"):
        path.replace(folder / ADAPTER / path.name)
    merged.save_pretrained(folder)


def _reason(error: BaseException, token: str | None) -> str:
    """Return the cause of an error on one line, without tokens."""
    text = without_token(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text.replace(token, HIDDEN) if token else text}"
