"""Downloads media from http(s) URLs, within limits of bytes and seconds that a slow server cannot exceed."""

import socket
from contextlib import suppress
from io import BytesIO
from threading import Timer

import requests
from requests.adapters import HTTPAdapter

from .errors import MediaError
from .limits import Budget

SILENCE = 30.0  # seconds without a byte before a download is given up


def download(url: str, budget: Budget, max_bytes: int) -> bytes:
    """Download the content of a URL.

    A server that sends a byte now and then never triggers a read timeout, so the connection is closed at the end of the
    budget.

    Raises: MediaError for an error status, an empty or compressed response, or one past max_bytes or the budget.
    """
    budget.check_time()
    content, adapter = BytesIO(), _Interruptible()
    watchdog = Timer(budget.seconds_left, adapter.shut)
    watchdog.daemon = True
    watchdog.start()
    try:
        with requests.Session() as session:
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            silence = min(SILENCE, budget.seconds_left), SILENCE  # until connected, between two reads
            with session.get(url, stream=True, timeout=silence, headers={"Accept-Encoding": "identity"}) as response:
                response.raise_for_status()
                _refuse_compressed(response, budget.name)
                for chunk in response.iter_content(1 << 16):
                    content.write(chunk)
                    budget.check_time()
                    if content.tell() > max_bytes:
                        reason = f"the download passes {max_bytes} bytes"
                        raise MediaError(budget.name, reason, "Download it once to a local file")
    except requests.RequestException as error:
        budget.check_time()
        raise MediaError(budget.name, f"the download failed ({error})", "Check the URL, or use a local file") from error
    finally:
        watchdog.cancel()
    budget.check_time()  # without a declared length, a closed connection looks like the end of the content
    if content.tell() == 0:
        raise MediaError(budget.name, "the download is empty", "Check the file, or drop this sample")
    return content.getvalue()


def _refuse_compressed(response: requests.Response, name: str) -> None:
    """Reject a compressed response, which may unpack to a thousand times its size; plain bytes were requested."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        reason = f"the answer is compressed ({encoding}), and the plain file is wanted"
        raise MediaError(name, reason, "Serve it without Content-Encoding, or use a local file")


class _Interruptible(HTTPAdapter):
    """Records the sockets of its connections, so that they can be closed in the middle of a read."""

    def __init__(self):
        super().__init__()
        self._sockets: list[socket.socket] = []
        self._over = False

    def get_connection_with_tls_context(self, *args, **kwargs):
        pool, adapter = super().get_connection_with_tls_context(*args, **kwargs), self

        class Connection(pool.ConnectionCls):
            def connect(self):
                super().connect()
                adapter._sockets.append(self.sock)
                if adapter._over:
                    adapter.shut()

        pool.ConnectionCls = Connection
        return pool

    def shut(self) -> None:
        """Shut down these connections, which wakes their readers; later connections are closed as they open."""
        self._over = True
        for open_socket in self._sockets:
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
