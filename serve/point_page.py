"""The page on which a person points: what the policy saw last in each episode, what it was told, and a click or a box as the answer.

`GET /point` is the page, which never changes; `GET /point/seen` what it shows, asked for several times a second; `POST /point`
points: a number of an episode and one of the keys `prompt/points` and `prompt/boxes`, or neither to point at nothing.
"""

import asyncio
import base64
import io
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from model.processor import Observation
from pixel160k.errors import InputError
from pixel160k.format.prompts import Prompt
from pixel160k.show import drawing
from policies.framing import BOXES, POINTS, from_json
from serve.clicks import Clicks, Episode
from serve.refusals import Refused, read_body, refusal
from serve.requests import read_pointing

PAGE = "/point"
_TEMPLATE = Path(__file__).with_name("point.html")
_EPISODE = "episode"
_KEYS = {_EPISODE, POINTS, BOXES}
_MOST_BYTES = 4096  # of what is pointed at
_HEADERS = {
    # Nothing from elsewhere, and in no frame of another site, over which a person might click without knowing on what.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def page_routes() -> list[Route]:
    """Where the page is, for the application whose service has `clicks`."""
    return [
        Route(PAGE, _page, methods=["GET"]),
        Route(PAGE, _point, methods=["POST"]),
        Route(f"{PAGE}/seen", _seen, methods=["GET"]),
    ]


async def _page(_: Request) -> Response:
    return HTMLResponse(_html(), headers=_HEADERS)


@cache
def _html() -> str:
    return drawing.render(_TEMPLATE, {"title": "Point at what is meant"})


async def _seen(request: Request) -> Response:
    """What the page shows: all episodes, and of the one that is asked for, or the last, what was seen and told.

    The picture is left out where the page has it: `have` is the `version` that it was told.
    """
    clicks: Clicks = request.app.state.service.clicks
    acting, asked = clicks.acting(), request.query_params.get(_EPISODE, "")
    chosen = next((one for one in acting if str(one.number) == asked), acting[-1] if acting else None)
    said: dict[str, Any] = {"episodes": [_summary(one) for one in sorted(acting, key=lambda one: one.number)]}
    if chosen is not None:
        image, version = chosen.told.image, f"{chosen.number}.{chosen.shown}"
        told, coming = in_words(chosen)
        said |= _summary(chosen) | {
            "told": told,
            "next": coming,
            "marked": chosen.click is not None,
            "waits": not chosen.decided.is_set(),
            "size": [image.shape[1], image.shape[0]],
            "layers": await asyncio.to_thread(_layers, _shown(chosen)),
            "version": version,
        }
        if request.query_params.get("have") != version:
            said["image"] = await asyncio.to_thread(_jpeg, image)
    return JSONResponse(said, headers=_HEADERS)


async def _point(request: Request) -> Response:
    """Point at something in an episode, or at nothing any more."""
    service, client = request.app.state.service, request.client.host if request.client else "a browser"
    try:
        message = from_json(await read_body(request, _MOST_BYTES, service.settings.read_s))
        await _pointed(service.clicks, message)
    except ClientDisconnect:
        return Response(status_code=499)
    except Refused as refused:
        service.refused(client, str(refused))
        return refusal(refused.status, str(refused))
    except Exception as error:
        return refusal(*service.explain(error, client))
    return JSONResponse({}, headers=_HEADERS)


async def _pointed(clicks: Clicks, message: Any) -> None:
    if not isinstance(message, dict) or type(message.get(_EPISODE)) is not int or message.keys() - _KEYS:
        raise InputError(f"say the number of an {_EPISODE}, and {POINTS} or {BOXES}, or neither to point at nothing")
    episode = clicks.find(message[_EPISODE])
    _, prompts = read_pointing(message, *episode.told.image.shape[:2])
    if len(prompts) > 1:
        raise InputError(f"one thing is pointed at, not {len(prompts)}")
    await episode.point(clicks.click(prompts[0]) if prompts else None)


def in_words(episode: Episode) -> tuple[str, str]:
    """What the policy was told with the image that it saw last, and what comes next; "" where nothing changes."""
    told, coming = "the instruction alone", ""
    if episode.by == "client":
        told = "the instruction and what its client points at, which comes before a click here"
    elif episode.by == "click":
        told = f"the instruction and {_named(episode.told.prompts[0])}"
        if masks := episode.told.masks:
            told += ", with the mask that SAM 2 follows" if masks[0].any() else "; SAM 2 does not see it on this image"
    if not episode.decided.is_set():
        left = max(0, round(episode.until - time.monotonic()))
        return "nothing yet", f"It waits for you: point at something, or let it go on without. {left} s are left."
    if episode.click is not None and not (episode.by == "click" and episode.told.prompts[0] is episode.click.prompt):
        coming = f"With its next image it is told {_named(episode.click.prompt)}."
    elif episode.holds:
        coming = "The gripper is closed: nothing is pointed at until it opens."
    elif episode.ended == "closed":
        coming = "The gripper has closed: what was pointed at is not told any more."
    elif episode.ended == "failed":
        coming = "SAM 2 failed on what was pointed at, which is not told any more; the server's log says why."
    elif episode.ended == "removed" and episode.by == "click":
        coming = "With its next image it is told the instruction alone."
    return told, coming


def _named(prompt: Prompt) -> str:
    numbers = [f"{number:g}" for number in prompt.coordinates.ravel().tolist()]
    if prompt.kind == "point":
        return f"a point at {', '.join(numbers)}"
    return f"a box from {', '.join(numbers[:2])} to {', '.join(numbers[2:])}"


def _summary(episode: Episode) -> dict[str, Any]:
    return {
        "number": episode.number,
        "name": episode.name,
        "instruction": episode.told.instruction,
        "shown": episode.shown,
        "idle": round(time.monotonic() - episode.last),
    }


def _shown(episode: Episode) -> Observation:
    """What is drawn over the image: what goes with it from now on, or what its client or a click that has done its work said."""
    image, click = episode.told.image, episode.click
    if click is not None:
        return Observation(image, "", click.masks, [click.prompt])
    return episode.told if episode.by == "client" or episode.ended == "closed" else Observation(image, "")


def _layers(shown: Observation) -> Markup:
    masks = [drawing.mask_layer(mask, "mask target") for mask in shown.masks]
    return Markup().join([*masks, *map(drawing.prompt_layer, shown.prompts)])


def _jpeg(image: np.ndarray) -> str:
    """An image, RGB uint8, as the address of a JPEG that holds it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
