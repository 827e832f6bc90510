"""What requests over HTTP are refused with, and their bodies, which may come neither too slowly nor too large."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse


class Refused(Exception):
    """A request that gets a status and a line before it was read whole."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def refusal(status: int, reason: str) -> JSONResponse:
    """The answer that says why there is none."""
    return JSONResponse({"error": reason}, status)


async def read_body(request: Request, most: int, seconds: float, advice: str = "") -> bytes:
    """The body of a request.

    Args:
        request: whose head has come.
        most: bytes that it may have.
        seconds: in which it must have come whole.
        advice: how it might have more, for the reason.

    Raises:
        Refused: it has more, or takes longer.
        starlette.requests.ClientDisconnect: the client left.
    """
    too_large = Refused(413, f"a message may have {most} bytes{advice}")
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
        raise Refused(408, f"the message did not come whole within {seconds:g} s") from None
    return bytes(body)
