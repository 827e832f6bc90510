"""The two protocols on one port: openpi's websocket at `/`, OpenVLA's `POST /act`, what watches the server, and the page to point on.

An observation that cannot be answered gets one line that says why: with a status of 4xx, or, as openpi has it, as a text frame
before the websocket is closed with 1011. A traceback goes to nobody but the server's log.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from pixel160k.errors import InputError
from policies.framing import from_json, gripper_to, pack, to_json, unpack
from serve.clicks import Key
from serve.point_page import PAGE, page_routes
from serve.refusals import Refused, read_body, refusal
from serve.requests import ACT, CHUNK_IMAGE, OPENPI, read_episode, read_observation
from serve.service import Gone, Service

_KEYS = ("api-key", "bearer")  # openpi's way to send one, and everybody's
_PASSWORD = "basic"  # a browser's, on the page alone, which has no other way
_INTERNAL_ERROR = 1011  # what openpi closes a websocket with
_CLIENT_CLOSED = 499  # nobody reads it


def make_app(service: Service, key: str = "", page: bool = False) -> Starlette:
    """The application, for any ASGI server.

    Args:
        service: the policy.
        key: what clients must send; without one everybody is served.
        page: serve the page on which a person points; the service has `clicks` then.
    """
    app = Starlette(
        routes=[
            WebSocketRoute("/", _openpi),
            Route("/act", _act, methods=["POST"]),
            Route("/metadata", _metadata),
            Route("/metrics", _metrics),
            Route("/healthz", _healthz),
            *(page_routes() if page else []),
        ],
        middleware=[Middleware(_Door, service=service, key=key)],
    )
    app.state.service = service
    return app


class _Door:
    """Lets in who has the key, no page of another site, and no more at once than the settings say. `/healthz` is open to all."""

    def __init__(self, app: ASGIApp, service: Service, key: str) -> None:
        self._app, self._service, self._key, self._inside = app, service, key.encode(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        try:
            self._check(HTTPConnection(scope))
        except Refused as refused:
            self._service.refused(_client(HTTPConnection(scope)), str(refused))
            said = refusal(refused.status, str(refused))
            if refused.status == 401 and _is_page(scope["path"]):  # then a browser asks for it
                said.headers["WWW-Authenticate"] = f'{_PASSWORD} realm="the API key is the password"'
            if scope["type"] == "websocket":
                with suppress(WebSocketDisconnect):
                    await WebSocket(scope, receive, send).send_denial_response(said)
            else:
                await said(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1

    def _check(self, connection: HTTPConnection) -> None:
        _check_site(connection, self._service.settings.host_names)
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        scheme, given = scheme.lower(), given.strip()
        if scheme == _PASSWORD and _is_page(connection.url.path):
            scheme, given = _KEYS[0], _password(given)
        known = hmac.compare_digest(given.encode(), self._key) and scheme in _KEYS
        if self._key and not known:
            raise Refused(401, "this server wants its API key, as the header Authorization: Api-Key KEY")
        if self._inside >= self._service.settings.connections:
            raise Refused(503, f"this server has {self._inside} clients already; come back later")


def _check_site(connection: HTTPConnection, host_names: Collection[str]) -> None:
    """Refuse pages of other sites, which a browser that may reach this server could show as well.

    Browsers say whose page asks, robots' clients say nothing. A site may have its own name point here, and is then asked as
    the same site: where a browser may have asked, we answer to no name but those that the settings say. A proxy either passes
    on by which name it was asked, or puts our address there; then the page's own origin has the name.
    """
    origin, host = connection.headers.get("origin"), connection.headers.get("host", "").lower()
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        scheme, _, name = origin.partition("://")
        if scheme not in ("http", "https") or name not in host_names:
            raise Refused(403, f"a page of another site ({origin[:80]!r}) may not use this server")
    known = _by_address(host) or _name_of(host) in map(_name_of, host_names)
    if (origin is not None or _is_page(connection.url.path)) and not known:
        way = "open the page by this machine's address or as localhost"
        raise Refused(403, f"{way}, not as {host[:80]!r}; or start the server with --set host_names=[NAME]")


def _is_page(path: str) -> bool:
    return path == PAGE or path.startswith(f"{PAGE}/")


def _by_address(host: str) -> bool:
    try:
        name = _name_of(host)
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """A host without its port; "" where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _password(credentials: str) -> str:
    """The password of a browser's credentials; "" where they are none."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def _openpi(websocket: WebSocket) -> None:
    """openpi's protocol: what the server is first; then one answer to each observation, until one cannot be answered."""
    service, client = websocket.app.state.service, _client(websocket)
    alone = ("openpi", client)
    incoming: asyncio.Future[Any] | None = None
    try:
        await websocket.accept()
        await websocket.send_bytes(pack(service.describe(OPENPI)))
        incoming = asyncio.ensure_future(websocket.receive())
        while (message := await incoming)["type"] == "websocket.receive":
            since, incoming = time.monotonic(), asyncio.ensure_future(websocket.receive())
            if message.get("bytes") is None:
                raise InputError("an observation comes as a binary frame of msgpack, not as text")
            said = unpack(message["bytes"])
            observation = read_observation(said, OPENPI, service.dataset)
            answer = await service.answer(observation, since, incoming, _episode(said, alone))
            actions = gripper_to(service.gripper(OPENPI), answer.actions)
            timing = {"infer_ms": answer.acted * 1000, "wait_ms": answer.waited * 1000}
            await _sent(websocket, websocket.send_bytes(pack({"actions": actions, "server_timing": timing})))
    except (Gone, WebSocketDisconnect):
        service.left()
    except Exception as error:
        _, reason = service.explain(error, client)
        with suppress(Gone):
            await _sent(websocket, websocket.send_text(reason))
            await _sent(websocket, websocket.close(_INTERNAL_ERROR, "the reason is in the frame before"))
    finally:
        service.ended(alone)
        if incoming is not None:
            incoming.cancel()


async def _sent(websocket: WebSocket, sending: Any) -> None:
    """Send; a websocket that is closed already means that the client is gone."""
    try:
        await sending
    except (WebSocketDisconnect, RuntimeError):  # RuntimeError: uvicorn closed it itself, as for a frame too large
        raise Gone from None


async def _act(request: Request) -> Response:
    """OpenVLA's protocol: `image` asks for one action, as its client carries out; `full_image`, OpenVLA-OFT's, for a chunk."""
    service, client = request.app.state.service, _client(request)
    incoming: asyncio.Future[Any] | None = None
    try:
        advice = "; the server's setting message_mb says so"
        settings = service.settings
        body = await read_body(request, settings.message_bytes, settings.read_s, advice)
        since = time.monotonic()
        message = from_json(body)
        twice = isinstance(message, dict) and message.keys() == {"encoded"} and isinstance(message["encoded"], str)
        message = from_json(message["encoded"]) if twice else message
        observation = read_observation(message, ACT, service.dataset)
        incoming = asyncio.ensure_future(request.receive())
        episode = _episode(message, ("/act", request.client.host if request.client else "a client"))
        answer = await service.answer(observation, since, incoming, episode, single=CHUNK_IMAGE not in message)
    except (Gone, ClientDisconnect):
        service.left()
        return Response(status_code=_CLIENT_CLOSED)
    except Refused as refused:
        service.refused(client, str(refused))
        return refusal(refused.status, str(refused))
    except Exception as error:
        return refusal(*service.explain(error, client))
    finally:
        if incoming is not None:
            incoming.cancel()
    actions = gripper_to(service.gripper(ACT), answer.actions)
    text = to_json(list(actions) if CHUNK_IMAGE in message else actions[0])
    return Response(to_json(text) if twice else text, media_type="application/json")


async def _metadata(request: Request) -> Response:
    return JSONResponse(request.app.state.service.describe(ACT))


async def _metrics(request: Request) -> Response:
    return JSONResponse(request.app.state.service.measures())


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("OK\n")


def _episode(message: dict[str, Any], unnamed: Key) -> Key:
    """Which episode an observation is of; where it does not say so, its client has one alone."""
    name = read_episode(message)
    return ("episode", name) if name else unnamed


def _client(connection: HTTPConnection) -> str:
    return f"{connection.client.host}:{connection.client.port}" if connection.client else "a client"
