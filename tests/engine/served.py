"""A real server in a process of its own, started as a user does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from tests.engine.rollouts import PLAIN, SMALL, saved, wide
from tests.helpers import free_port
from tests.processes.launch import ROOT

START = 600  # seconds
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
RUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # set by TRL in a process with an engine


class Server:
    """`trl-perception serve` on a family's tiny model in `folder`/model; `run` are the settings of a run that samples by it."""

    def __init__(self, family: str, folder: Path):
        saved(wide(family), folder / "model")
        self.folder, self.process = folder, None
        if family in PLAIN:
            self._add_plugin(f"tests.engine.{PLAIN[family]}:install")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.run: dict[str, Any] = {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": self.url,
            "vllm_server_timeout": START,
            "engine_weight_folder": str(folder / "weights"),
            "engine_options": SMALL,
        }
        model = {"model_name_or_path": str(folder / "model"), "dtype": "float32", "bf16": False}
        rest = {"trainer": "grpo", "dataset_name": "synthetic", "reward_funcs": ["accuracy"], "output_dir": str(folder)}
        (folder / "recipe.yaml").write_text(json.dumps({**self.run, **model, **rest}))  # JSON is YAML

    def _add_plugin(self, function: str) -> None:
        """Let vLLM call a function in each of its processes: an entry point of an installed package."""
        package = self.folder / "plugins" / "plugin-0.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
        (package / "entry_points.txt").write_text(f"[vllm.general_plugins]\nplugin = {function}\n")

    def start(self) -> None:
        """Begin; it answers a minute later."""
        command = ["-m", "trl_perception.cli.main", "serve", "--config", str(self.folder / "recipe.yaml")]
        shell = {name: value for name, value in os.environ.items() if name not in RUN}
        with (self.folder / "server.txt").open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**shell, **ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(self.folder / "plugins"), str(ROOT)])},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            time.sleep(0.5)
        raise AssertionError(f"no server at {self.url}:\n{(self.folder / 'server.txt').read_text()[-6000:]}")

    def kill(self) -> None:
        """End it with all its processes, at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def serving(family: str, folder: Path) -> Iterator[Server]:
    server = Server(family, folder)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
