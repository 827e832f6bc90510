"""The page of a shard directory, made as it is looked at, so that it opens at once however many episodes there are.

A small web server on this machine alone: `/` is a page of cards by what the address asks for, `/episode` all steps of one
episode, `/picture` the picture of one step, which browsers ask for when it comes into view. Nothing is written anywhere.
"""

import errno
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow.compute as pc
from markupsafe import Markup

from pixel160k.errors import InputError
from pixel160k.format.episode_rows import EpisodeRow
from pixel160k.paths import AnyPath
from pixel160k.read.episode_table import episode_table
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.folder import read_manifest
from pixel160k.show.browse_page import make_card, render_page
from pixel160k.show.frames import frame
from pixel160k.show.overview import SCORES, Choice, Overview, pages

PORT = 8160
PER_PAGE = 60
_LOCAL = ("127.0.0.1", "localhost")


class BrowseServer(ThreadingHTTPServer):
    """Serves the pages of one shard directory to this machine.

    Attributes:
        address: where the page is, with the choice that it was opened with.
    """

    daemon_threads = True

    def __init__(self, shards: AnyPath, choice: Choice | None = None, port: int = PORT) -> None:
        """Read the table of episodes and take the port; 0 takes any that is free. The index is read meanwhile.

        Raises:
            InputError: the directory holds no shards, they are damaged, no episode is as asked for, or the port is taken.
        """
        self.manifest = read_manifest(shards)
        self.overview = Overview(episode_table(shards))
        self.overview.check(choice := choice or Choice())
        try:
            super().__init__((_LOCAL[0], port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise InputError(f"port {port} cannot be used ({error.strerror}); give another with --port") from None
        # Part of each picture's address: browsers keep pictures, and other shards may be shown at this port next.
        self._shards = hashlib.sha256(json.dumps(self.manifest).encode()).hexdigest()[:12]
        self._opened = ThreadPoolExecutor(1).submit(ShardDirectory, shards)
        self.address = f"http://{_LOCAL[0]}:{self.server_port}{_link(choice)}"

    @property
    def directory(self) -> ShardDirectory:
        """The shards, for their pictures; the first that asks may wait for the index.

        Raises:
            InputError: the index is damaged.
        """
        return self._opened.result()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that left before it had its answer, as it does when one goes on to the next page."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def page(self, query: Mapping[str, str]) -> str:
        """A page of cards. What the query does not know or cannot mean is left out of it."""
        known = {field.name: query.get(field.name, "") for field in fields(Choice)}
        choice = Choice(**known | {"worst": known["worst"] if known["worst"] in SCORES else ""})
        chosen = self.overview.choose(choice)
        count = max(1, math.ceil(len(chosen) / PER_PAGE))
        asked = query.get("page", "")
        page = min(max(int(asked), 1), count) if asked.isdecimal() and len(asked) < 9 else 1
        rows = self.overview.rows(chosen[(page - 1) * PER_PAGE : page * PER_PAGE])
        offered = pages(page, count)
        links = {number: _link(choice, number) for number in {*offered, page - 1, page + 1}}
        cards = [make_card(row, self._to_come) for row in rows]
        return render_page(
            self.manifest, self.overview, choice, cards, total=len(chosen), page=page, pages=offered, links=links
        )

    def episode(self, query: Mapping[str, str]) -> str:
        """All steps of an episode.

        Raises:
            InputError: there is no such episode.
        """
        episode = query.get("episode", "")
        steps = self.directory.steps(episode)
        number = pc.index(self.overview.table["episode_id"], episode).as_py()
        if number < 0:
            raise InputError(f"the table of episodes lacks {episode}")
        row = self.overview.rows([number])[0]
        card = make_card(row, self._to_come)
        card.pictures[:] = [self._to_come(row, step, whole=True) for step in steps]
        return render_page(self.manifest, self.overview, Choice(), [card], total=1, episode=True)

    def picture(self, query: Mapping[str, str]) -> str:
        """The picture of a step; what is wrong with it, where it cannot be read."""
        try:
            step = int(query.get("step", ""))
        except ValueError:
            raise InputError("no step") from None
        try:
            if query.get("of", self._shards) != self._shards:
                raise InputError("this page is of other shards than are shown here now; load it again")
            return frame(self.directory, query.get("episode", ""), step, thumbnail="whole" not in query)
        except InputError as error:
            return Markup('<div class="nothing bad">{}</div>').format(error)

    def _to_come(self, row: EpisodeRow, step: int, whole: bool = False) -> Markup:
        """The place of a picture that is asked for when it comes into view."""
        asked = {"of": self._shards, "episode": row.episode_id, "step": step} | ({"whole": 1} if whole else {})
        return Markup('<div class="to-come" data-picture="{}"></div>').format(f"/picture?{urlencode(asked)}")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: BrowseServer

    def do_GET(self) -> None:
        """Answer a GET."""
        try:
            host, address = urlsplit(f"//{self.headers.get('Host', '')}").hostname, urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        # Another site may have its own name point here, to read what we serve; then that name is what we are asked as.
        if host not in _LOCAL:
            self.send_error(HTTPStatus.FORBIDDEN, "this server answers as localhost only")
            return
        makers = {"/": self.server.page, "/episode": self.server.episode, "/picture": self.server.picture}
        if (make := makers.get(address.path)) is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = make(dict(parse_qsl(address.query))).encode()
        except InputError as error:
            self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if content.startswith(b"<figure>"):  # and not where a picture cannot be read, which may be mended
            self.send_header("Cache-Control", "max-age=600")  # so that paging back asks for nothing
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of a request that was answered."""


def _link(choice: Choice, page: int = 1) -> str:
    asked = {name: value for name, value in asdict(choice).items() if value} | ({"page": page} if page > 1 else {})
    return f"/?{urlencode(asked)}" if asked else "/"
