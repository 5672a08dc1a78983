"""A local HTTP server with faulty responses."""

import gzip
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def misbehaving(clip: bytes):
    """Context manager that gives the address of the server; only /clip.mp4 is a valid response."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/").partition(".")[0].replace("-", "_")
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up, as it should
                getattr(self, name, self.gone)()

        def answer(self, content: bytes = b"", status: int = 200, **headers) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content)

        def gone(self):
            self.answer(b"<html>not found</html>", 404)

        def clip(self):
            self.answer(clip)

        def page(self):
            self.answer(b"<!DOCTYPE html><html><body>Please log in</body></html>", Content_Type="video/mp4")

        def empty(self):
            self.answer()

        def half(self):
            self.answer(clip[: len(clip) // 2], Content_Length=len(clip))

        def circle(self):
            self.answer(status=302, Location="/circle.mp4")

        def to_file(self):
            self.answer(status=302, Location="file:///etc/passwd")

        def gzip(self):
            self.answer(gzip.compress(bytes(10 << 20)), Content_Encoding="gzip")

        def silent(self):
            over.wait(30)

        def drip_header(self):
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Drip: ")
            self.drip()

        def drip(self):
            if self.path.startswith("/drip."):
                self.answer(Content_Length=1 << 20)
            end = time.monotonic() + 30
            while not over.wait(0.05) and time.monotonic() < end:
                self.wfile.write(b"x")

        def endless(self):
            self.answer()
            end = time.monotonic() + 30
            while not over.wait(0.01) and time.monotonic() < end:
                self.wfile.write(bytes(1 << 16))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
