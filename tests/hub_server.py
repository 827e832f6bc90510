"""The Hugging Face Hub on loopback, as far as files are listed and read: one data set, `me/shards`."""

import json
import re
from contextlib import contextmanager

from web_server import Silent, serving


@contextmanager
def serve_hub(folder):
    """Give the files of a folder as those of the data set; yields the URL and the list of what was asked: path, bytes given."""
    requests = []

    class Handler(Silent):
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

    with serving(Handler) as url:
        yield url, requests
