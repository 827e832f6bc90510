"""Policies that run elsewhere: clients of openpi's websocket protocol and of OpenVLA's `/act`, behind the one protocol.

They ask `pixelcli serve`, and just as well the servers of openpi, OpenVLA and OpenVLA-OFT. A lost connection is made anew, so
that a server that was started again goes on being asked; one that stays away is an InputError.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from typing import Any, NamedTuple, TypeVar, get_args
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

import numpy as np
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from pixel160k.errors import InputError, one_line
from policies.base import Seen
from policies.framing import EPISODE, Gripper, from_json, gripper_from, pack, pointing, to_json, unpack

_PAUSE = 0.5  # seconds between two tries to reach a server
_MOST_BYTES = 64 * 2**20  # of an answer
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
        self._names: dict[str, str] = {}

    def reset(self, episode: str, instruction: str) -> None:
        """Give the episode a name that it had never before, for servers that take one: the protocols themselves name none."""
        self._names[episode] = f"{episode} {time.strftime('%H:%M:%S')}"

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """See `policies.base.Policy`. The server is asked for all episodes at the same time."""
        chunks = list(self._pool.map(self._ask, seen))
        if len({len(chunk) for chunk in chunks}) > 1:
            raise InputError(f"{self.url} answered with chunks of {sorted({len(chunk) for chunk in chunks})} actions")
        return np.stack(chunks)

    def close(self) -> None:
        """Give connections and threads up."""
        self._pool.shutdown()

    def _ask(self, seen: Seen) -> np.ndarray:
        """The chunk for one observation."""
        raise NotImplementedError

    def _patiently(self, ask: Callable[[], _Result]) -> _Result:
        """What a question gives. Where the server cannot be reached it is asked anew: once, and as long as patience lasts."""
        until, tries = time.monotonic() + self._patience, 0
        while True:
            try:
                return ask()
            except TimeoutError:
                raise InputError(
                    f"{self.url} did not answer within {self._timeout:g} s; is its policy too slow?"
                ) from None
            except (OSError, HTTPException, WebSocketException) as error:
                tries += 1
                if tries > 1 and time.monotonic() > until:
                    raise InputError(f"{self.url} cannot be reached ({one_line(error)}); start the server") from None
            time.sleep(_PAUSE)

    def _checked(self, actions: Any, gripper: Gripper) -> np.ndarray:
        """A chunk as the protocol of policies wants it: float32 (N, 7)."""
        try:
            chunk = np.asarray(actions, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"{self.url} did not answer with actions, but with {actions!r:.120}") from None
        if chunk.ndim != 2 or chunk.shape[1] != 7 or not len(chunk) or not np.isfinite(chunk).all():
            raise InputError(f"{self.url} must answer with finite actions (N, 7); it gave {chunk.shape}")
        return gripper_from(gripper, chunk)


class OpenpiPolicy(_Remote):
    """A server that speaks openpi's websocket protocol."""

    def __init__(
        self,
        url: str,
        api_key: str = "",
        gripper: Gripper | None = None,
        timeout: float = 60,
        patience: float = 10,
        at_once: int = 32,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: ws://HOST:PORT, or wss://.
            api_key: what the server wants, or "".
            gripper: what the last number of its actions means; by default what the server says, or, where it says nothing,
                `signed`, as openpi's LIBERO policies have it.
            timeout: seconds that an answer may take.
            patience: seconds in which a server that cannot be reached may come (back).
            at_once: how many observations it is asked for at the same time.

        Raises:
            InputError: `url` is none.
        """
        super().__init__(url, ("ws", "wss"), api_key, timeout, patience, at_once)
        self._gripper = gripper
        self._idle: list[_Open] = []

    def close(self) -> None:
        """Give connections and threads up."""
        super().close()
        self._forget()

    def _ask(self, seen: Seen) -> np.ndarray:
        pointed = pointing(seen.masks, seen.prompts)
        said: dict[str, Any] = {"observation/image": seen.image, "prompt": seen.instruction, **pointed}
        if seen.wrist_image is not None:
            said["observation/wrist_image"] = seen.wrist_image
        if seen.state is not None:
            said["observation/state"] = seen.state

        def ask() -> tuple[bytes | str, _Open]:
            opened = self._take()
            try:
                _check_pointing(self.url, pointed, opened.about)
                name = self._names.get(seen.episode, seen.episode)
                opened.connection.send(pack(said | ({EPISODE: name} if name and _takes(opened.about, EPISODE) else {})))
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
        found, gripper = unpack(answer), self._gripper or opened.about.get("gripper", "signed")
        if not isinstance(found, dict) or gripper not in get_args(Gripper):
            raise InputError(f"{self.url} does not answer as openpi does; is it another server?")
        return self._checked(found.get("actions"), gripper)

    def _take(self) -> _Open:
        with suppress(IndexError):
            return self._idle.pop()
        return self._connect()

    def _connect(self) -> _Open:
        try:
            connection = connect(
                self.url,
                compression=None,
                max_size=_MOST_BYTES,
                additional_headers=self._headers,
                open_timeout=self._timeout,
                ping_interval=None,  # a server that compiles or thinks may not answer pings; `timeout` is what counts
            ).__enter__()  # what newer releases of websockets want; `close` ends it
        except InvalidStatus as error:
            raise InputError(f"{self.url} turns us away: {_reason(bytes(error.response.body or b''))}") from None
        except InvalidURI as error:
            raise InputError(f"{self.url} is no address: {one_line(error)}") from None
        said = connection.recv(self._timeout)
        about = unpack(said) if isinstance(said, bytes) else None
        if not isinstance(about, dict):
            connection.close()
            raise InputError(f"{self.url} does not begin as openpi's servers do; is it another server?")
        return _Open(connection, about)

    def _forget(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().connection.close()


class ActPolicy(_Remote):
    """A server that speaks OpenVLA's `/act`."""

    def __init__(
        self,
        url: str,
        dataset: str | None = None,
        chunks: bool = True,
        api_key: str = "",
        gripper: Gripper = "unit",
        timeout: float = 60,
        patience: float = 10,
        at_once: int = 32,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: http://HOST:PORT/act, or https://.
            dataset: whose robot acts, the `unnorm_key`; by default the server's own.
            chunks: ask for a whole chunk, as OpenVLA-OFT and `pixelcli serve` give one; else for one action, as OpenVLA does.
            api_key: what the server wants, or "".
            gripper: what the last number of its actions means; OpenVLA and OpenVLA-OFT give `unit`.
            timeout: seconds that an answer may take.
            patience: seconds in which a server that cannot be reached may come (back).
            at_once: how many observations it is asked for at the same time.

        Raises:
            InputError: `url` is none.
        """
        super().__init__(url, ("http", "https"), api_key, timeout, patience, at_once)
        self._dataset, self._chunks, self._gripper = dataset, chunks, gripper
        self._about: dict[str, Any] | None = None

    def _ask(self, seen: Seen) -> np.ndarray:
        pointed = pointing(seen.masks, seen.prompts)
        if pointed and self._about is None:
            self._about = self._described()
        _check_pointing(self.url, pointed, self._about or {})
        said = {"full_image" if self._chunks else "image": seen.image, "instruction": seen.instruction, **pointed}
        said |= {} if self._dataset is None else {"unnorm_key": self._dataset}
        said |= {} if seen.wrist_image is None else {"wrist_image": seen.wrist_image}
        said |= {} if seen.state is None else {"state": seen.state}
        body = to_json(said).encode()
        answer = from_json(self._patiently(lambda: self._exchange(self.url, body)))
        if answer == "error":  # what OpenVLA's servers say, with status 200
            raise InputError(f"{self.url} cannot act on the observation; its own log says why")
        return self._checked(answer if self._chunks else [answer], self._gripper)

    def _described(self) -> dict[str, Any]:
        """What the server says of itself; nothing, where it is not one of ours."""
        parts = urlsplit(self.url)
        address = urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0] + "/metadata", "", ""))
        try:
            about = from_json(self._patiently(lambda: self._exchange(address)))
        except InputError:
            return {}
        return about if isinstance(about, dict) else {}

    def _exchange(self, address: str, body: bytes | None = None) -> bytes:
        request = Request(address, body, {"Content-Type": "application/json", **self._headers})
        try:
            with urlopen(request, timeout=self._timeout) as response:
                return bytes(response.read(_MOST_BYTES))
        except HTTPError as error:
            with error:
                raise InputError(f"{address} cannot act ({error.code}): {_reason(error.read(10_000))}") from None


def _check_pointing(url: str, pointed: dict[str, Any], about: dict[str, Any]) -> None:
    """Refuse to point where the server would not look: it would act as if nothing had been said."""
    if unknown := [key for key in pointed if not _takes(about, key)]:
        raise InputError(f"{url} does not say that it takes {', '.join(unknown)}; pixelcli serve does")


def _takes(about: dict[str, Any], key: str) -> bool:
    taken = about.get("keys")
    return isinstance(taken, list) and key in taken


def _reason(body: bytes) -> str:
    """Why a server refuses: what it says in JSON under "error", or the begin of its text."""
    try:
        said = from_json(body)
    except InputError:
        said = body.decode("utf-8", "replace")
    return " ".join(str(said.get("error", said) if isinstance(said, dict) else said).split())[:500]
