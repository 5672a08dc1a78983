"""The connection to the process that runs math-verify, one for each calling process."""

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Lock

CPU_SECONDS = 2.0  # of processor time for one request
START_SECONDS, REPLY_SECONDS = 300, 60  # of waiting, enough for a busy machine


class MathProcess:
    """The `math_worker.py` of this process, started at the first request; a fork of this process starts its own."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self._lock = Lock()
        self._worker: subprocess.Popen | None = None

    def ask(self, *expressions: str) -> bool:
        """Return math_worker's reply; False, and a new process for the next request, if it does not reply in time."""
        with self._lock:
            if self._worker is None:
                self._start()
            with suppress(BrokenPipeError):  # handled below: there is no reply either
                self._worker.stdin.write(json.dumps(expressions).encode() + b"\n")
                self._worker.stdin.flush()
            reply = self._line(REPLY_SECONDS)
            if reply is None:
                self._end()
            elif reply not in (b"true", b"false"):
                raise self._failure("ended")
        return reply == b"true"

    def close(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._end()

    def _start(self) -> None:
        if find_spec("math_verify") is None:
            raise ImportError(
                "problem_type 'mathematics' is scored with math-verify, which is not installed. "
                "Install it: pip install math-verify"
            )
        file = Path(__file__).with_name("math_worker.py")
        # -P: sympy must not import modules from the file's folder
        command = [sys.executable, "-P", str(file), str(CPU_SECONDS)]
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        if self._line(START_SECONDS) != b"ready":
            raise self._failure("did not start")

    def _line(self, seconds: float) -> bytes | None:
        """Return the worker's next line, b"" if it has exited, None on timeout."""
        with DefaultSelector() as selector:
            selector.register(self._worker.stdout, EVENT_READ)
            return self._worker.stdout.readline().rstrip(b"\n") if selector.select(seconds) else None

    def _end(self) -> int:
        with suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)  # it leads its own session, which includes its fork
        code = self._worker.wait()
        self._worker.stdout.close()
        with suppress(BrokenPipeError):
            self._worker.stdin.close()
        self._worker = None
        return code

    def _failure(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"the process that runs math-verify {what} (exit code {self._end()}). What it printed above says why; "
            "it wants math-verify and a POSIX system. Rows of problem_type 'mathematics' cannot be scored without it."
        )


math_process = MathProcess()
atexit.register(math_process.close)
if hasattr(os, "register_at_fork"):  # not on Windows, where rows of mathematics cannot be scored
    os.register_at_fork(after_in_child=math_process.forget)
