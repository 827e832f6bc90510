"""The two protocols on one port: openpi's websocket at `/`, OpenVLA's `POST /act`, and what watches the server.

An observation that cannot be answered gets one line that says why: with a status of 4xx, or, as openpi has it, as a text frame
before the websocket is closed with 1011. A traceback goes to nobody but the server's log.
"""

import asyncio
import hmac
import time
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from pixel160k.errors import InputError
from policies.framing import from_json, gripper_to, pack, to_json, unpack
from serve.requests import ACT, CHUNK_IMAGE, OPENPI, read_observation
from serve.service import Gone, Service

_KEYS = ("api-key", "bearer")  # openpi's way to send one, and everybody's
_INTERNAL_ERROR = 1011  # what openpi closes a websocket with
_CLIENT_CLOSED = 499  # nobody reads it


class _Refused(Exception):
    """A request that gets a status and a line before it was read whole."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def make_app(service: Service, key: str = "") -> Starlette:
    """The application, for any ASGI server.

    Args:
        service: the policy.
        key: what clients must send; without one everybody is served.
    """
    app = Starlette(
        routes=[
            WebSocketRoute("/", _openpi),
            Route("/act", _act, methods=["POST"]),
            Route("/metadata", _metadata),
            Route("/metrics", _metrics),
            Route("/healthz", _healthz),
        ],
        middleware=[Middleware(_Door, service=service, key=key)],
    )
    app.state.service = service
    return app


class _Door:
    """Lets in who has the key, and no more at once than the settings say. `/healthz` is open to all."""

    def __init__(self, app: ASGIApp, service: Service, key: str) -> None:
        self._app, self._service, self._key, self._inside = app, service, key.encode(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        try:
            self._check(HTTPConnection(scope))
        except _Refused as refused:
            self._service.refused(_client(HTTPConnection(scope)), str(refused))
            if scope["type"] == "websocket":
                with suppress(WebSocketDisconnect):
                    await WebSocket(scope, receive, send).send_denial_response(_error(refused.status, str(refused)))
            else:
                await _error(refused.status, str(refused))(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1

    def _check(self, connection: HTTPConnection) -> None:
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode(), self._key) and scheme.lower() in _KEYS
        if self._key and not known:
            raise _Refused(401, "this server wants its API key, as the header Authorization: Api-Key KEY")
        if self._inside >= self._service.settings.connections:
            raise _Refused(503, f"this server has {self._inside} clients already; come back later")


async def _openpi(websocket: WebSocket) -> None:
    """openpi's protocol: what the server is first; then one answer to each observation, until one cannot be answered."""
    service, client = websocket.app.state.service, _client(websocket)
    incoming: asyncio.Future[Any] | None = None
    try:
        await websocket.accept()
        await websocket.send_bytes(pack(service.describe(OPENPI)))
        incoming = asyncio.ensure_future(websocket.receive())
        while (message := await incoming)["type"] == "websocket.receive":
            since, incoming = time.monotonic(), asyncio.ensure_future(websocket.receive())
            if message.get("bytes") is None:
                raise InputError("an observation comes as a binary frame of msgpack, not as text")
            observation = read_observation(unpack(message["bytes"]), OPENPI, service.dataset)
            answer = await service.answer(observation, since, incoming)
            said = {
                "actions": gripper_to(service.gripper(OPENPI), answer.actions),
                "server_timing": {"infer_ms": answer.acted * 1000, "wait_ms": answer.waited * 1000},
            }
            await _sent(websocket, websocket.send_bytes(pack(said)))
    except (Gone, WebSocketDisconnect):
        service.left()
    except Exception as error:
        _, reason = service.explain(error, client)
        with suppress(Gone):
            await _sent(websocket, websocket.send_text(reason))
            await _sent(websocket, websocket.close(_INTERNAL_ERROR, "the reason is in the frame before"))
    finally:
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
        body, since = await _body(request, service), time.monotonic()
        message = from_json(body)
        twice = isinstance(message, dict) and message.keys() == {"encoded"} and isinstance(message["encoded"], str)
        message = from_json(message["encoded"]) if twice else message
        observation = read_observation(message, ACT, service.dataset)
        incoming = asyncio.ensure_future(request.receive())
        answer = await service.answer(observation, since, incoming)
    except (Gone, ClientDisconnect):
        service.left()
        return Response(status_code=_CLIENT_CLOSED)
    except _Refused as refused:
        service.refused(client, str(refused))
        return _error(refused.status, str(refused))
    except Exception as error:
        return _error(*service.explain(error, client))
    finally:
        if incoming is not None:
            incoming.cancel()
    actions = gripper_to(service.gripper(ACT), answer.actions)
    text = to_json(list(actions) if CHUNK_IMAGE in message else actions[0])
    return Response(to_json(text) if twice else text, media_type="application/json")


async def _body(request: Request, service: Service) -> bytes:
    most, seconds = service.settings.message_bytes, service.settings.read_s
    too_large = _Refused(413, f"a message may have {most} bytes; the server's setting message_mb says so")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise _Refused(408, f"the message did not come whole within {seconds:g} s") from None
    return bytes(body)


async def _metadata(request: Request) -> Response:
    return JSONResponse(request.app.state.service.describe(ACT))


async def _metrics(request: Request) -> Response:
    return JSONResponse(request.app.state.service.measures())


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("OK\n")


def _error(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)


def _client(connection: HTTPConnection) -> str:
    return f"{connection.client.host}:{connection.client.port}" if connection.client else "a client"
