"""`pixelcli serve`: a checkpoint on a port of this machine, until it is told to end."""

import logging
import os
import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import current_thread, main_thread

import h11
import numpy as np
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from model.policy import PixelVLA
from model.processor import Observation
from pixel160k.errors import InputError, one_line
from pixel160k.format.prompts import point
from policies.choose import KEY_VARIABLE
from serve.app import make_app
from serve.batching import Actor
from serve.clicks import Clicks, Pointing
from serve.point_page import PAGE
from serve.service import Service
from serve.settings import ServeSettings
from train.checkpoints import load_policy

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_GRACE = 3  # seconds that clients have to get their answers when the server ends
_WAITING = 512  # connections that the system keeps until they are taken
_SIZE, _CENTRE = (224, 224), (112.0, 112.0)  # of the image that a policy is tried with


def serve(
    checkpoint: str,
    host: str,
    port: int,
    settings: ServeSettings,
    dataset: str | None = None,
    device: str = "cpu",
    key: str = "",
    compiled: bool = False,
    announce: Callable[[str], None] = print,
    pointing: Pointing | None = None,
) -> None:
    """Serve a checkpoint until Ctrl-C or SIGTERM.

    Args:
        checkpoint: hub id, or the folder of a checkpoint or of a run.
        host: the address to listen at; any other than loopback lets other machines in.
        port: 0 takes any that is free.
        settings: how clients are served.
        dataset: whose robot acts where a client does not say it; may be left out where the checkpoint knows one only.
        device: of the policy.
        key: what clients must send, or "".
        compiled: compile the policy (`PixelVLA.compile_acting`): minutes at the start, faster on a GPU.
        announce: gets the one line that says where clients find it, when they do.
        pointing: how things are pointed at for clients that do not do so; None: not at all.

    Raises:
        InputError: the port cannot be had, the checkpoint cannot be loaded, or it cannot act.
    """
    listener = bind(host, port)  # before a large policy is loaded; until then clients are turned away
    policy = load_policy(checkpoint, device=device)
    server = PolicyServer(policy, listener, settings, dataset, key, compiled, Path(checkpoint).name, pointing)
    _log_to_stderr()
    if host not in _LOOPBACK and not key:
        logging.getLogger(__name__).warning(
            "whoever reaches %s may use this policy; %s=KEY wants a key", host, KEY_VARIABLE
        )
    page = f"; point at things on {server.page_address}" if pointing and pointing.page else ""
    announce(
        f"serving {checkpoint} at {server.address} (openpi) and {server.act_address} (OpenVLA){page}; Ctrl-C ends it"
    )
    server.run()


def bind(host: str, port: int) -> socket.socket:
    """Take a port without listening at it yet.

    Raises:
        InputError: it is taken, or the address is none of this machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _of_the_port(host, port):
        listener.bind((host, port))
    return listener


def read_key(file: Path | None) -> str:
    """The API key: of a file, or of the environment variable `PIXELVLA_API_KEY`; "" where there is neither.

    Never of the command line, which every user of a machine can read.

    Raises:
        InputError: the file cannot be read, or the key is empty or no visible ASCII.
    """
    if file is None and KEY_VARIABLE not in os.environ:
        return ""
    try:
        key = os.environ[KEY_VARIABLE] if file is None else file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the API key in {file}: {one_line(error)}") from None
    if not key or not all("!" <= character <= "~" for character in key):
        raise InputError(f"the API key in {file or KEY_VARIABLE} must be one word of visible ASCII")
    return key


class PolicyServer:
    """One policy behind both protocols.

    Attributes:
        address: of the websocket, which openpi's client takes.
        act_address: of OpenVLA's `/act`.
        page_address: of the page to point on, where it is served.
    """

    def __init__(
        self,
        policy: PixelVLA,
        listener: socket.socket,
        settings: ServeSettings,
        dataset: str | None = None,
        key: str = "",
        compiled: bool = False,
        name: str = "",
        pointing: Pointing | None = None,
    ) -> None:
        """Let the policy act once, so that what it lacks is found now, and listen.

        Args:
            policy: where it shall compute; nobody else may use it from now on.
            listener: of `bind`.
            settings, dataset, key, compiled, pointing: see `serve`.
            name: of the policy, for clients.

        Raises:
            InputError: `dataset` is unknown or must be named, or the policy cannot act.
        """
        known = policy.processor.statistics
        dataset = next(iter(known)) if dataset is None and len(known) == 1 else dataset
        policy.processor.statistics_of(dataset)
        assert dataset is not None
        follow = pointing.follow if pointing else None
        act = _compiled(policy, dataset, settings.batch, follow is not None) if compiled else policy.act
        policy.act([blank := _blank(policy, dataset)])
        if follow is not None:
            follow(_CENTRE)(blank.image)
        about = {
            "version": version("pixelvla"),
            "name": name,
            "chunk": policy.settings.chunk,
            "datasets": sorted(known),
            "reads_state": policy.settings.reads_state,
        }
        self._actor = Actor(act, settings.batch, settings.batch_wait_ms / 1000)
        self._clicks = Clicks(pointing, settings) if pointing else None
        service = Service(self._actor, settings, dataset, about, self._clicks)
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(service, key, page=pointing is not None and pointing.page),
                http=_Impatient,
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=settings.read_s,  # type: ignore[arg-type]  # any number that asyncio takes
                timeout_graceful_shutdown=_GRACE,
                ws_max_size=settings.message_bytes,
                ws_per_message_deflate=False,
                ws_ping_interval=settings.ping_s,
                ws_ping_timeout=settings.ping_s,
            )
        )
        host, port = listener.getsockname()[:2]
        with _of_the_port(host, port):
            listener.listen(_WAITING)
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.address, self.act_address, self.page_address = (
            f"ws://{place}",
            f"http://{place}/act",
            f"http://{place}{PAGE}",
        )

    def run(self) -> None:
        """Serve until `stop`, or, in the main thread, until Ctrl-C or SIGTERM."""
        with _ended_by_signals():
            self._server.run(sockets=[self._listener])
        self._actor.close()
        if self._clicks is not None:
            self._clicks.close()

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True


def _blank(policy: PixelVLA, dataset: str, pointed: bool = False, followed: bool = False) -> Observation:
    """An observation of nothing, of the kind that the policy reads."""
    image = np.zeros((*_SIZE, 3), np.uint8)
    proprioception = policy.processor.statistics_of(dataset).get("proprio") or {}
    state = np.array(proprioception.get("mean", []), np.float32) if policy.settings.reads_state else None
    masks, prompts = [np.ones(_SIZE, bool)] if followed else [], [point(*_CENTRE)] if pointed else []
    return Observation(image, "wait", masks, prompts, state, dataset)


def _compiled(
    policy: PixelVLA, dataset: str, most: int, followed: bool
) -> Callable[[Sequence[Observation]], np.ndarray]:
    """Acting by compiled graphs, made for one observation and for `most`: a batch between is filled up with copies."""
    blanks = [_blank(policy, dataset), _blank(policy, dataset, pointed=True)]
    blanks += [_blank(policy, dataset, pointed=True, followed=True)] if followed else []
    policy.compile_acting([[blank] * count for count in sorted({1, most}) for blank in blanks])

    def act(observations: Sequence[Observation]) -> np.ndarray:
        missing = most - len(observations) if len(observations) > 1 else 0
        return policy.act([*observations, *[observations[-1]] * missing])[: len(observations)]

    return act


class _Impatient(H11Protocol):
    """uvicorn's HTTP, which gives clients up: those that do not send the head of a request, and those that do not stop to send
    a body that was refused, which is read on for a while so that they find the reason. The time is that of an idle connection.
    """

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    @property
    def _waits(self) -> bool:
        """Whether it is the client's turn, and no answer of ours is due."""
        refused = self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
        return self.conn.their_state is h11.IDLE or refused

    def _watch(self) -> None:
        if self._waits and self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self._give_up)
        elif not self._waits and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._waits and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.send_400_response(f"The head of the request did not come within {self.timeout_keep_alive:g} s.")
        elif self._waits:
            self.transport.close()


@contextmanager
def _of_the_port(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"cannot listen at {host}:{port} ({reason}); give another --port or --host") from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """uvicorn ends at SIGINT and SIGTERM and raises them anew for whoever was there before it; here that is the end of it."""
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr() -> None:
    """The server's log: who was refused and why, and tracebacks of bugs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # What uvicorn says of every websocket that is turned away with a reason, as if that were an error.
    handler.addFilter(lambda record: "without completing handshake" not in record.getMessage())
    for name, level in (("serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
