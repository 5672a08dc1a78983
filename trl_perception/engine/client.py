"""Client of an engine behind a server: it sends prompts with media and weights, and checks that the server holds them."""

import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
import torch
from accelerate.logging import get_logger
from msgspec import msgpack
from requests.adapters import HTTPAdapter
from torch import Tensor
from trl import GRPOConfig
from trl.generation.vllm_client import VLLMClient

from .checks import engine_version
from .media import EngineMedia, engine_input, packed, require_fit, require_same_ids
from .weights import Named, write_weights

logger = get_logger(__name__)

FACTS, GENERATE = "/trl_perception/facts", "/trl_perception/generate"
COMPARED = ("model", "dtype", "mm_device_do_normalize", "logprobs_mode")  # options in which server and run must agree
BINARY = {"Content-Type": "application/octet-stream"}
REQUESTS = 64  # at a time
REPEATS = 3  # of a rollout whose server was lost
TEXT = EngineMedia("a prompt without media", "", torch.zeros(0, dtype=torch.long), ())


class ServerLostError(ConnectionError):
    """The server ended, or was started again and holds other weights."""


class MediaClient(VLLMClient):
    """TRL's `VLLMClient` for prompts with [`EngineMedia`] and for a server that may end and start again.

    Args:
        settings: the run's.
        options: of the engine, as the run would build it.
        of_trl: what TRL passes.
    Errors: ConnectionError without a server, ValueError for one with other settings.
    """

    def __init__(self, settings: GRPOConfig, options: Mapping[str, Any], **of_trl: Any):
        self.wanted = {name: options[name] for name in COMPARED} | {"vllm": engine_version()}
        self.timeout = settings.vllm_server_timeout
        folder = settings.engine_weight_folder
        self.folder = None if folder is None else Path(folder).expanduser().resolve()
        self.version: str | None = None  # of the weights that were sent last
        self.rule: str | None = None
        self.lost = 0  # how often the server was lost in this rollout
        super().__init__(**of_trl)
        # TRL's session repeats requests by itself, where another server with other weights may answer.
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=REQUESTS))
        self._attach()

    # As `MediaLLM` has it, the engine in the trainer's process

    def positions(self, prompt_ids: Sequence[int], media: EngineMedia) -> Tensor | None:
        """Return the positions (3,P+1) of a prompt and its first new token; None for models with one axis."""
        body = packed(engine_input(prompt_ids, media, self._dtype), {})
        found = self._call_workers("positions_of", b64encode(body).decode())
        return None if found is None else torch.tensor(found)

    def use_position_rule(self, rule: str) -> None:
        """Let the engine follow a `position_rule`, and each engine that is started after it."""
        self.rule = rule
        self._call_workers("use_position_rule", rule)

    # Sampling

    def image_features(self, images: list[list[EngineMedia]]) -> list[EngineMedia]:
        """Return the media: nothing is left to process."""
        return [of_row[0] for of_row in images]

    def generate(self, prompts: list[list[int]], features: list[EngineMedia] | None = None, **options: Any) -> dict:
        """As in TRL. If the server was lost and another is ready, every prompt and completion is None."""
        return super().generate(prompts, features or [TEXT] * len(prompts), **options)

    def _generate_from_features(
        self, prompts: list[list[int]], features: list[EngineMedia], sampling_params: dict[str, Any]
    ) -> dict[str, list | None]:
        count, seed = sampling_params["n"], sampling_params.get("seed")
        copies = count if sampling_params["temperature"] == 0 else 1  # vLLM refuses several greedy ones
        for ids, media in zip(prompts, features, strict=True):
            require_fit(ids, media, sampling_params["max_tokens"], *self.limits)

        def sample(index: int) -> tuple:
            # The engine adds 0 to n - 1 to the seed for the completions of a prompt.
            own = {**sampling_params, "n": count // copies} | ({} if seed is None else {"seed": seed + index * count})
            body = packed(engine_input(prompts[index], features[index], self._dtype), own)
            return msgpack.decode(self._request("POST", GENERATE, data=body, headers=BINARY).content)

        try:
            self._require_weights()
            with ThreadPoolExecutor(min(REQUESTS, len(prompts))) as pool:
                found = list(pool.map(sample, range(len(prompts))))
            self._require_weights()
        except ServerLostError as lost:
            self._recover(lost)
            return {
                "prompt_ids": [None] * len(prompts),
                "completion_ids": [None] * len(prompts) * count,
                "logprobs": None,
            }
        self.lost = 0
        for ids, media, (engines, _) in zip(prompts, features, found, strict=True):
            require_same_ids(media.sample, ids, engines)
        completions = [completion for _, of_prompt in found for completion in of_prompt * copies]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in completions],
            "logprobs": [[[value] for value in values] for _, values in completions],
        }

    # Weights

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Join the server's group for weights, unless they go through a folder. Errors: ValueError without a GPU."""
        self.device = device
        if self.folder is not None:
            return
        if (kind := torch.device(device).type) != "cuda":
            raise ValueError(
                f"Weights go to a server by NCCL, between GPUs, and this run trains on {kind}. Set engine_weight_folder, for the "
                "server and the run, to a folder that both see."
            )
        super().init_communicator(device)

    def update_named_params(self, metadata: list, named_params: Named) -> None:
        """Send weights. Errors: ConnectionError without a server."""
        version = uuid4().hex
        if self.folder is None:
            self._surviving(lambda: self._call_workers("hold_version", None))
            super().update_named_params(metadata, named_params)
            self._call_workers("hold_version", version)
        else:
            folder = self.folder / f"weights-{version}"
            try:
                write_weights(named_params, folder)
                self._surviving(lambda: self._call_workers("load_folder", str(folder), version))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self.version = version

    def reset_prefix_cache(self) -> None:
        """Empty the caches of the engine, which other weights computed; requests that are running are computed again."""
        self._surviving(self._reset_caches)

    def _reset_caches(self) -> None:
        answer = self._request("POST", "/reset_prefix_cache", params={"reset_running_requests": "true"})
        if not answer.json()["success"]:
            raise RuntimeError(f"The server at {self.base_url} kept its prefix cache after an update. Start it again.")
        self._request("POST", "/reset_encoder_cache")

    # The server

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 1.0) -> None:
        """Wait for the server. Errors: ConnectionError after `total_timeout` seconds."""
        until = time.monotonic() + total_timeout
        while True:
            try:
                if requests.get(f"{self.base_url}/health", timeout=10).ok:
                    return
            except requests.RequestException:
                pass
            if time.monotonic() > until:
                raise ConnectionError(
                    f"No server answers at {self.base_url} within vllm_server_timeout {self.timeout:g} seconds. Start it by "
                    "`trl-perception serve` with this run's recipe, or correct vllm_server_base_url."
                )
            time.sleep(retry_interval)

    def _attach(self) -> None:
        """Set up a server for this run. Errors: ValueError if its settings are not the run's."""
        facts = self._facts()
        self.limits = facts["max_model_len"], facts["encoder_cache"]
        differ = [
            f"{name} {facts[name]!r} instead of {value!r}"
            for name, value in self.wanted.items()
            if facts[name] != value
        ]
        if differ:
            raise ValueError(
                f"The server at {self.base_url} has {', '.join(differ)}. Start it by `trl-perception serve` with this run's recipe "
                "and options."
            )
        if self.rule is not None:
            self.use_position_rule(self.rule)

    def _recover(self, lost: ServerLostError) -> None:
        """Wait until a lost server is started again. Errors: ConnectionError if it is not, or is lost too often."""
        self.lost += 1
        if self.lost > REPEATS:
            raise lost
        logger.warning(f"{lost} Weights and prompts are sent again once it answers.")
        until = time.monotonic() + self.timeout
        while True:
            self.check_server(max(until - time.monotonic(), 0.0))
            try:
                self._attach()
                break
            except ServerLostError:  # it answers while it ends
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)
        if self.communicator is not None:
            self.close_communicator()
            self.init_communicator(self.device)

    def _surviving(self, call: Callable[[], Any]) -> Any:
        """Call, and call again if the server was lost and is started again."""
        while True:
            try:
                return call()
            except ServerLostError as lost:
                self._recover(lost)

    def _facts(self) -> dict[str, Any]:
        return self._request("GET", FACTS).json()

    def _require_weights(self) -> None:
        held = self._facts()["weights"]
        if held is None:
            raise ServerLostError(f"The server at {self.base_url} was started again, without this run's weights.")
        if held != self.version:
            raise RuntimeError(
                f"The server at {self.base_url} got weights from another run. Give each run a server of its own "
                "(vllm_server_base_url)."
            )

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.wanted["dtype"])

    def _call_workers(self, method: str, *args: Any) -> Any:
        """Call a method of every worker and return what the first returns."""
        body = {"method": method, "args": args}
        return self._request("POST", "/collective_rpc", json=body).json()["results"][0]

    def _get(self, url: str, **options: Any) -> dict:
        return self._request("GET", url.removeprefix(self.base_url), **options).json()

    def _post(self, url: str, **options: Any) -> dict:
        return self._request("POST", url.removeprefix(self.base_url), **options).json()

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Errors: ServerLostError if the server ends, RuntimeError if it is late or refuses."""
        url = f"{self.base_url}{path}"
        try:
            answer = self.session.request(method, url, timeout=self.timeout, **options)
        except requests.ReadTimeout as error:
            raise RuntimeError(
                f"{url} did not answer within vllm_server_timeout {self.timeout:g} seconds. Raise it if a rollout or the transfer of "
                "weights takes longer; otherwise start the server again."
            ) from error
        except requests.RequestException as error:
            raise ServerLostError(f"The server at {self.base_url} ended ({type(error).__name__}).") from error
        if answer.status_code >= 500:  # what an engine that died answers before its server ends
            raise ServerLostError(f"The server at {self.base_url} failed: {answer.text[:500]}.")
        if answer.status_code == 404 and path == FACTS:
            raise ValueError(
                f"The server at {self.base_url} takes no prompts with media. Start it by `trl-perception serve`."
            )
        if not answer.ok:
            raise RuntimeError(f"{url} refused a request: {answer.text[:500]}")
        return answer
