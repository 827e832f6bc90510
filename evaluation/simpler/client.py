"""Asks a policy server over openpi's websocket protocol, from an environment in which the server's own code is not.

Source: packages/openpi-client of github.com/Physical-Intelligence/openpi: msgpack in binary frames, the server's metadata
first, an error as a text frame. `openpi-client` itself is not used, because it pins versions of its own.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

from pixel160k.errors import InputError, one_line

PATIENCE = 600  # seconds for an answer: the first may wait for compiled graphs
GRIPPERS = {"unit": "[0, 1] with 1 = open", "signed": "-1 = open, 1 = closed"}  # as pixelcli serve names them
SLACK = 0.25  # how far beyond [0, 1] an opening may lie: who regresses overshoots, another convention lies farther


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes; arrays in openpi's form."""
    return msgpack.packb(message, default=_pack_array)


def unpack(data: bytes) -> Any:
    """What a message says.

    Raises:
        ValueError: no message of openpi's.
    """
    try:
        return msgpack.unpackb(data, object_hook=_unpack_array)
    except (KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(one_line(error)) from error


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "VOc":
        raise TypeError(f"a {type(value).__name__} cannot be sent")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _unpack_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    if b"__npgeneric__" in value:
        return np.dtype(value[b"dtype"]).type(value[b"data"])
    return value


def opening_of(gripper: np.ndarray, convention: str) -> np.ndarray:
    """A server's gripper values as openings in [0, 1], 1 = open.

    Args:
        gripper: float (N,).
        convention: one of `GRIPPERS`.

    Raises:
        InputError: values that the convention does not have.
    """
    opening = (1 - gripper) / 2 if convention == "signed" else gripper
    if opening.min() < -SLACK or opening.max() > 1 + SLACK:
        raise InputError(
            f"the server's gripper values reach from {gripper.min():g} to {gripper.max():g}, which is not the convention "
            f"{convention!r} ({GRIPPERS[convention]}); --gripper says it for a server that does not"
        )
    return np.clip(opening, 0, 1)


class Server:
    """A policy somewhere else, behind one connection.

    Attributes:
        metadata: what the server says of itself.
        gripper: its convention of the gripper, see `opening_of`.
    """

    def __init__(self, url: str, gripper: str | None = None, api_key: str | None = None) -> None:
        """Connects, and waits for the server's metadata.

        Args:
            url: ws://host:port.
            gripper: the convention of a server whose metadata names none.
            api_key: what the server asks for, if it does.

        Raises:
            InputError: no server there, one that refuses, or one whose gripper's convention is not known.
        """
        self.url = url
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        with ExitStack() as connected:
            try:
                # No pings: a server may be busy with one long forward pass. No proxy: robots' servers are near.
                self._connection = connected.enter_context(
                    connect(
                        url,
                        compression=None,
                        max_size=None,
                        additional_headers=headers,
                        open_timeout=60,
                        ping_interval=None,
                        proxy=None,
                    )
                )
            except InvalidStatus as error:
                reason = (error.response.body or b"").decode("utf-8", "replace")
                raise InputError(f"{url} lets nobody in: {one_line(error)} {' '.join(reason.split())}") from error
            except (OSError, WebSocketException, ValueError) as error:
                raise InputError(
                    f"no policy server at {url}: {one_line(error)}; start it first: pixelcli serve"
                ) from error
            self.metadata = self._receive()
            if not isinstance(self.metadata, dict):
                raise InputError(f"{url} does not begin with metadata: it does not speak openpi's protocol")
            keys = self.metadata.get("keys")  # of pixelcli serve, which so knows where an episode begins
            self._named = isinstance(keys, list) and "episode" in keys
            said = self.metadata.get("gripper")
            if said is not None and gripper not in (None, said):
                raise InputError(f"{url} says that its gripper is {said!r}: leave out --gripper {gripper}")
            self.gripper = str(said or gripper)
            if self.gripper not in GRIPPERS:
                known = ", ".join(f"{name} ({meaning})" for name, meaning in GRIPPERS.items())
                raise InputError(
                    f"{url} does not say what its gripper values mean ({said!r}); --gripper says it: {known}"
                )
            self._close = connected.pop_all().close

    def ask(self, image: np.ndarray, instruction: str, episode: str) -> np.ndarray:
        """The next actions.

        Args:
            image: RGB uint8 (height, width, 3).
            instruction: what to do.
            episode: a name that no other episode ever had, for servers that take one; the protocol itself says nothing of it.

        Returns:
            float64 (N, 7): as `policies.base.Policy.act` gives them.

        Raises:
            InputError: the server answers with an error, with something else, or not at all.
        """
        try:
            said = {"observation/image": image, "prompt": instruction}
            self._connection.send(pack(said | ({"episode": episode} if self._named else {})))
        except (OSError, WebSocketException) as error:
            raise self._lost(error) from error
        reply = self._receive()
        if not isinstance(reply, dict) or "actions" not in reply:
            raise InputError(f"{self.url} answered without actions")
        try:
            actions = np.array(reply["actions"], dtype=np.float64)
        except (TypeError, ValueError):
            actions = np.zeros(0)
        if actions.ndim != 2 or actions.shape[1] != 7 or not len(actions) or not np.isfinite(actions).all():
            raise InputError(f"{self.url} answered with actions that are not N x 7 finite numbers, but {actions.shape}")
        actions[:, 6] = opening_of(actions[:, 6], self.gripper)
        return actions

    def close(self) -> None:
        """Ends the connection."""
        self._close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            data = self._connection.recv(timeout=PATIENCE)
        except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
            raise self._lost(error) from error
        if isinstance(data, str):  # openpi sends a traceback, whose last line tells
            raise InputError(f"{self.url} refuses: {(data.strip().splitlines() or ['no reason given'])[-1]}")
        try:
            return unpack(data)
        except ValueError as error:
            raise InputError(f"{self.url} does not speak openpi's protocol: {one_line(error)}") from error

    def _lost(self, error: Exception) -> InputError:
        return InputError(
            f"{self.url} does not answer any more: {one_line(error)}; start it again, then this: what is done is kept"
        )
