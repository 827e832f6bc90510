"""Policies that run elsewhere: clients of openpi's websocket protocol and of OpenVLA's `/act`, behind the one protocol.

They ask `pixelcli serve`, and just as well the servers of openpi, OpenVLA and OpenVLA-OFT. A lost connection is made anew, so
that a server that was started again goes on being asked; one that stays away is an InputError. No proxy of the environment is
asked: robots' servers are near, where it may not reach.
"""

import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from threading import Lock
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakSet

import numpy as np
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from pixel160k.errors import InputError, one_line
from policies.base import Seen
from policies.framing import DATASET, EPISODE, Gripper, brief, from_json, gripper_from, pack, pointing, to_json, unpack

_PAUSE = 0.5  # seconds between two tries to reach a server
_NEAR = 10  # seconds for a connection, which the system takes for a server however busy that is
_PARTING = 0.2  # seconds for a server to say goodbye as well
_MOST_BYTES = 64 * 2**20  # of an answer
_NOT_NOW = (401, 429, 502, 503, 504)  # statuses that say nothing of what a server has
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_Result = TypeVar("_Result")


class _Open(NamedTuple):
    connection: ClientConnection
    about: dict[str, Any]  # what the server said of itself


class _Remote:
    """What the two clients share: several episodes are asked for at once, and a server may come back."""

    def __init__(
        self, url: str, schemes: Sequence[str], api_key: str, timeout: float, patience: float, at_once: int
    ) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:  # of a port that is no number
            usable = False
        if not usable:
            raise InputError(f"{url!r} is no address of a policy server; it begins with {' or '.join(schemes)} and ://")
        self.url, self._timeout, self._patience = url, timeout, patience
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="ask")
        self._place = (parts.hostname or "", parts.port or _PORTS[parts.scheme])
        self._path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        self._names: dict[str, str] = {}
        self._lock, self._closed = Lock(), False
        self._streams: WeakSet[socket.socket] = WeakSet()

    @property
    def about(self) -> dict[str, Any]:
        """What the server says of itself, as plain values; nothing, where it says nothing. It is asked, if it was not yet.

        Raises:
            InputError: it cannot be reached, or turns us away.
        """
        return dict(_plain(self._described()))

    def reset(self, episode: str, instruction: str) -> None:
        """Give the episode a name that it had never before, for servers that take one."""
        self._names[episode] = f"{episode} {datetime.now():%H:%M:%S.%f}"

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """See `policies.base.Policy`. The server is asked for all episodes at the same time."""
        with self._lock:  # else `close` may end the pool when some are asked and others are not
            asked = [self._pool.submit(self._ask, one) for one in seen]
        chunks = [answer.result() for answer in asked]
        if len({len(chunk) for chunk in chunks}) > 1:
            raise InputError(f"{self.url} answered with chunks of {sorted({len(chunk) for chunk in chunks})} actions")
        return np.stack(chunks)

    def close(self) -> None:
        """Give connections and threads up. What waits for an answer is hung up, and asks no more."""
        with self._lock:
            self._closed = True
            for stream in self._streams:
                with suppress(OSError):  # it is closed
                    socket.socket.shutdown(stream, socket.SHUT_RDWR)
        self._pool.shutdown()

    def _ask(self, seen: Seen) -> np.ndarray:
        """The chunk for one observation."""
        raise NotImplementedError

    def _described(self) -> dict[str, Any]:
        """What the server says of itself, as it came."""
        raise NotImplementedError

    def _ours(self, seen: Seen, about: dict[str, Any]) -> dict[str, Any]:
        """What goes beyond both protocols: what is pointed at, and, for a server that takes it, the episode's name.

        Raises:
            InputError: the server takes no pointing; it would act as if nothing had been pointed at.
        """
        said, taken = pointing(seen.masks, seen.prompts), _keys(about)
        if unknown := [key for key in said if key not in taken]:
            raise InputError(f"{self.url} does not say that it takes {', '.join(unknown)}; pixelcli serve does")
        if EPISODE in taken and (name := self._names.get(seen.episode, seen.episode)):
            said[EPISODE] = name
        return said

    def _reach(self) -> socket.socket:
        """A connection to the server.

        Raises:
            OSError: it cannot be reached; no TimeoutError, which would be one that does not answer.
        """
        seconds = min(self._timeout, _NEAR)
        try:
            stream = socket.create_connection(self._place, seconds)
        except TimeoutError:
            raise ConnectionError(f"no connection within {seconds:g} s") from None
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux; else to a server that reads nothing one would send for ever
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeout * 1000))
        self._keep(stream)
        return stream

    def _keep(self, stream: socket.socket) -> None:
        """Have `close` hang a connection up."""
        with self._lock:
            if self._closed:
                stream.close()
                raise ConnectionError("closed")
            self._streams.add(stream)

    def _patiently(self, ask: Callable[[], _Result]) -> _Result:
        """What a question gives. Where the server cannot be reached it is asked anew: once, and as long as patience lasts."""
        until, tries = monotonic() + self._patience, 0
        while not self._closed:
            try:
                return ask()
            except TimeoutError:
                raise InputError(f"{self.url} did not answer within {self._timeout:g} s; is it too slow?") from None
            except (OSError, HTTPException, WebSocketException) as error:
                tries += 1
                if tries > 1 and monotonic() > until:
                    raise InputError(f"{self.url} cannot be reached ({one_line(error)}); start the server") from None
            sleep(_PAUSE)
        raise InputError(f"{self.url} is not asked any more: its client was closed")

    def _checked(self, actions: Any, gripper: Any) -> np.ndarray:
        """A chunk as the protocol of policies wants it: float32 (N, 7)."""
        if gripper not in get_args(Gripper):
            raise InputError(f"{self.url} has a gripper {brief(gripper)}; known are {', '.join(get_args(Gripper))}")
        try:
            chunk = np.asarray(actions, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"{self.url} did not answer with actions, but with {brief(actions)}") from None
        if chunk.ndim != 2 or chunk.shape[1] != 7 or not len(chunk) or not np.isfinite(chunk).all():
            raise InputError(f"{self.url} must answer with finite actions (N, 7); it gave {chunk.shape}")
        return gripper_from(gripper, chunk)


class OpenpiPolicy(_Remote):
    """A server that speaks openpi's websocket protocol."""

    def __init__(
        self,
        url: str,
        api_key: str = "",
        dataset: str | None = None,
        gripper: Gripper | None = None,
        timeout: float = 60,
        patience: float = 10,
        at_once: int = 32,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: ws://HOST:PORT, or wss://.
            api_key: what the server wants, or "".
            dataset: whose robot acts, the `unnorm_key`; by default the server's own. Servers of openpi itself take none.
            gripper: what the last number of its actions means; by default what the server says, or, where it says nothing,
                `signed`, as openpi's LIBERO policies have it.
            timeout: seconds that an answer may take.
            patience: seconds in which a server that cannot be reached may come (back).
            at_once: how many observations it is asked for at the same time.

        Raises:
            InputError: `url` is none.
        """
        super().__init__(url, ("ws", "wss"), api_key, timeout, patience, at_once)
        self._dataset, self._gripper = dataset, gripper
        self._idle: list[_Open] = []

    def close(self) -> None:
        """Give connections and threads up. What waits for an answer is hung up, and asks no more."""
        self._forget()
        super().close()
        self._forget()  # what came back meanwhile

    def _described(self) -> dict[str, Any]:
        opened = self._patiently(self._take)
        self._idle.append(opened)
        return opened.about

    def _ask(self, seen: Seen) -> np.ndarray:
        said: dict[str, Any] = {"observation/image": seen.image, "prompt": seen.instruction}
        more = {DATASET: self._dataset, "observation/wrist_image": seen.wrist_image, "observation/state": seen.state}
        said |= {key: value for key, value in more.items() if value is not None}

        def ask() -> tuple[bytes | str, _Open]:
            opened = self._take()
            try:
                if self._dataset is not None and DATASET not in _keys(opened.about):
                    raise InputError(
                        f"{self.url} does not say that it takes {DATASET}, so it acts for one robot only; name no data set"
                    )
                opened.connection.send(pack(said | self._ours(seen, opened.about)))
                return opened.connection.recv(self._timeout), opened
            except InputError:
                self._idle.append(opened)
                raise
            except (OSError, WebSocketException):  # then those that are idle are lost as well
                opened.connection.close()
                self._forget()
                raise

        answer, opened = self._patiently(ask)
        if isinstance(answer, str):  # after which it hangs up
            opened.connection.close()
            raise InputError(f"{self.url} cannot act on the observation: {' '.join(answer.split())[-500:]}")
        self._idle.append(opened)
        if not isinstance(found := unpack(answer), dict):
            raise InputError(f"{self.url} does not answer as openpi does; is it another server?")
        return self._checked(found.get("actions"), self._gripper or opened.about.get("gripper", "signed"))

    def _take(self) -> _Open:
        with suppress(IndexError):
            return self._idle.pop()
        return self._connect()

    def _connect(self) -> _Open:
        stream = self._reach()
        stream.settimeout(None)  # as websockets wants it
        try:
            connection = connect(  # type: ignore[call-overload]  # any that makes a connection will do
                self.url,
                sock=stream,
                create_connection=self._kept,
                proxy=None,
                compression=None,
                max_size=_MOST_BYTES,
                additional_headers=self._headers,
                open_timeout=self._timeout,
                close_timeout=_PARTING,
                ping_interval=None,  # a server that compiles or thinks may not answer pings; `timeout` is what counts
            ).__enter__()  # what newer releases of websockets want; `close` ends it
        except TimeoutError:
            raise ConnectionError(f"no handshake within {self._timeout:g} s") from None
        except InvalidStatus as error:
            raise InputError(f"{self.url} turns us away: {_reason(bytes(error.response.body or b''))}") from None
        except InvalidURI as error:
            raise InputError(f"{self.url} is no address: {one_line(error)}") from None
        try:
            said = connection.recv(self._timeout)
            about = unpack(said) if isinstance(said, bytes) else None
            if not isinstance(about, dict):
                raise InputError(f"{self.url} does not begin as openpi's servers do; is it another server?")
        except BaseException:
            connection.close()
            raise
        return _Open(connection, about)

    def _kept(self, stream: socket.socket, *protocol: Any, **options: Any) -> ClientConnection:
        self._keep(stream)  # with TLS it is another one
        return ClientConnection(stream, *protocol, **options)

    def _forget(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().connection.close()


class ActPolicy(_Remote):
    """A server that speaks OpenVLA's `/act`: it answers with one action, or, as OpenVLA-OFT and `pixelcli serve`, with a chunk."""

    def __init__(
        self,
        url: str,
        dataset: str | None = None,
        api_key: str = "",
        gripper: Gripper | None = None,
        timeout: float = 60,
        patience: float = 10,
        at_once: int = 32,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: http://HOST:PORT/act, or https://.
            dataset: whose robot acts, the `unnorm_key`; by default the server's own.
            api_key: what the server wants, or "".
            gripper: what the last number of its actions means; by default what the server says, else `unit`, as OpenVLA's.
            timeout: seconds that an answer may take.
            patience: seconds in which a server that cannot be reached may come (back).
            at_once: how many observations it is asked for at the same time.

        Raises:
            InputError: `url` is none.
        """
        super().__init__(url, ("http", "https"), api_key, timeout, patience, at_once)
        self._dataset, self._gripper = dataset, gripper
        self._tls = ssl.create_default_context() if url.startswith("https") else None
        self._about: dict[str, Any] | None = None
        self._describing = Lock()

    def _ask(self, seen: Seen) -> np.ndarray:
        about = self._described()
        said = {"full_image": seen.image, "instruction": seen.instruction} | self._ours(seen, about)
        if "full_image" not in _keys(about):  # OpenVLA looks for `image`, and does not mind OFT's `full_image`
            said["image"] = seen.image
        more = {DATASET: self._dataset, "wrist_image": seen.wrist_image, "state": seen.state}
        said |= {key: value for key, value in more.items() if value is not None}
        body = to_json(said).encode()
        status, text = self._patiently(lambda: self._exchange(self._path, body))
        if status != 200:
            raise self._refused(status, text)
        answer = from_json(text)
        if isinstance(answer, str) and answer == "error":  # what OpenVLA's servers say, with status 200
            raise InputError(f"{self.url} cannot act on the observation; its own log says why")
        single = isinstance(answer, np.ndarray) and answer.ndim == 1
        return self._checked([answer] if single else answer, self._gripper or about.get("gripper", "unit"))

    def _described(self) -> dict[str, Any]:
        with self._describing:  # once, whoever asks
            if self._about is None:
                self._about = self._metadata()
            return self._about

    def _metadata(self) -> dict[str, Any]:
        """What `pixelcli serve` says beside `/act`; nothing of a server that has no such."""
        path = self._path.partition("?")[0].rpartition("/")[0] + "/metadata"
        status, said = self._patiently(lambda: self._exchange(path))
        if status in _NOT_NOW:
            raise self._refused(status, said)
        about = None
        with suppress(InputError):  # a page of another kind of server
            about = from_json(said) if status == 200 else None
        return about if isinstance(about, dict) else {}

    def _refused(self, status: int, said: bytes) -> InputError:
        return InputError(f"{self.url} cannot act ({status}): {_reason(said)}")

    def _exchange(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and what the server says."""
        stream = self._reach()
        stream.settimeout(self._timeout)
        host, port = self._place
        with closing(HTTPConnection(host, port, timeout=self._timeout)) as connection:
            connection.sock = stream
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(stream, server_hostname=host)
                self._keep(connection.sock)
            headers = {"Content-Type": "application/json", **self._headers}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)


def _keys(about: dict[str, Any]) -> list[Any]:
    """Those that a server says it takes."""
    keys = about.get("keys")
    return keys if isinstance(keys, list) else []


def _plain(value: Any) -> Any:
    """A value of msgpack or JSON as one that JSON can hold: openpi's servers may tell arrays of themselves."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _reason(body: bytes) -> str:
    """Why a server refuses: what it says in JSON under "error", or the begin of its text."""
    try:
        said = from_json(body)
    except InputError:
        said = body.decode("utf-8", "replace")
    return " ".join(str(said.get("error", said) if isinstance(said, dict) else said).split())[:500]
