"""The worker of a server. vLLM imports this module in the process of the worker, before it loads a model."""

from base64 import b64decode
from contextlib import ExitStack
from pathlib import Path

from .colocate import replaceable_weights
from .media import features_of, unpacked
from .weights import read_weights
from .worker import PolicyWorker

_process = ExitStack()
_process.enter_context(replaceable_weights())


class ServerWorker(PolicyWorker):
    """Methods of a server's workers for `/collective_rpc`, which passes what JSON holds."""

    policy_version: str | None = None
    """Of the weights that the worker holds; None for those that it began with, and while they change."""

    def hold_version(self, version: str | None) -> None:
        """Say which weights the worker holds, where they come by the engine's own transfer."""
        self.policy_version = version

    def load_folder(self, folder: str, version: str) -> None:
        """Load weights that the trainer wrote."""
        self.policy_version = None
        model = self.model_runner.get_model()
        for named in read_weights(Path(folder)):
            model.load_weights([named])
        self.policy_version = version

    def held_version(self) -> str | None:
        """Return the version of the weights."""
        return self.policy_version

    def positions_of(self, body: str) -> list[list[int]] | None:
        """Return the positions of a prompt that is packed, in base64."""
        given, _ = unpacked(b64decode(body))
        found = self.positions(given["prompt_token_ids"], features_of(given))
        return None if found is None else found.tolist()
