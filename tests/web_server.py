"""A web server on loopback that gives files and parts of them, and may drop every connection before it is done."""

import http.server
import random
import re
import threading
from contextlib import contextmanager


class Silent(http.server.BaseHTTPRequestHandler):
    """Answers, and prints nothing of it."""

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler):
    """Let a handler answer on loopback; yields its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def serve_folder(folder, drop=None, parts=True, busy=0):
    """Serve a folder; yields its URL and the list of the requests, as (path, range).

    Args:
        folder: what to serve.
        drop: after a random number of bytes up to this the connection is cut, each and every one; None: never.
        parts: whether the server understands `Range`.
        busy: so many requests are refused, the first ones.
    """
    requests, generator = [], random.Random(0)

    class Handler(Silent):
        def do_GET(self):
            asked = self.headers.get("Range") if parts else None
            requests.append((self.path, asked))
            path = folder / self.path.lstrip("/")
            if len(requests) <= busy:
                return self.send_error(503)
            if not path.is_file():
                return self.send_error(404)
            content = path.read_bytes()
            begin, end = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups() if asked else ("0", "")
            stop = min(int(end) + 1 if end else len(content), len(content))
            if int(begin) >= len(content):
                return self.send_error(416)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{stop - 1}/{len(content)}")
            content = content[int(begin) : stop]
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if drop is None else content[: generator.randrange(drop)])

    with serving(Handler) as url:
        yield url, requests
