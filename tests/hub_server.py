"""The Hugging Face Hub on loopback, as far as files are listed and read: one data set, `me/shards`."""

import http.server
import json
import re
import threading
from contextlib import contextmanager


@contextmanager
def serve_hub(folder):
    """Give the files of a folder as those of the data set; yields the URL and the list of what was asked: path, bytes given."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, asked = self.path.partition("?")[0], self.headers.get("Range")
            if "/resolve/" in path:
                content = (folder / path.rpartition("/")[2]).read_bytes()
            elif "/tree/" in path:
                files = [{"path": file.name, "size": file.stat().st_size} for file in folder.iterdir()]
                content = json.dumps([file | {"type": "file", "oid": "0" * 40} for file in files]).encode()
            else:
                content = json.dumps({"id": "me/shards", "sha": "0" * 40}).encode()
            if asked:
                begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
                content = content[begin : end + 1]
            requests.append((path, len(content)))
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
