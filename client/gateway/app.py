"""What the gateway serves, and OpenAPI's description of it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import AwareDatetime, BaseModel

from broker.message import uuid7

from ..schema import ClassifyRequest, ClassifyResult
from .bodies import FORM, PART, TYPES
from .guard import Guard
from .intake import id_of_key
from .letters import Failure
from .metrics import CONTENT_TYPE
from .parts import Gateway
from .problems import BUSY_S, Refusal, described, install
from .stream import MOST_IDS, EventStream, answered, events

router = APIRouter()

# Longer than most proxies let a request wait; ask again.
MOST_WAIT_S = 30.0
_SOURCE = "/couturier/gateway"
# The first is what every backend takes as one attribute.
_SHORT, _LONG = 1024, 8192


class Pending(BaseModel):
    """An image that is stored in the queue and not answered yet."""

    id: str
    status: Literal["pending"] = "pending"
    accepted_at: datetime


# NUL ends a text in some databases.
_TEXT = "^[^\\x00]*$"
Short = Annotated[str | None, Query(max_length=_SHORT, pattern=_TEXT)]
Long = Annotated[str | None, Query(max_length=_LONG, pattern=_TEXT)]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "A PNG or JPEG file: as it is, or as the one file of a form.",
        "content": {
            **dict.fromkeys(TYPES, _BINARY),
            FORM: {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {PART: {"type": "string", "format": "binary"}},
                },
                "encoding": {PART: {"contentType": ", ".join(TYPES)}},
            },
        },
    }
}
_LOCATION = {"Location": {"description": "Where the result will be.", "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def application(version: str, gateway: Gateway | None = None) -> FastAPI:
    """Return the application; without a gateway it can do nothing but describe itself."""
    app = FastAPI(
        title="couturier",
        version=version,
        description="Send an image, get an id once the broker has stored it, ask for what was found.",
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False, description="COUTURIER_GATEWAY_TOKEN"))],
    )
    install(app)
    app.include_router(router)
    if gateway is not None:
        app.state.gateway = gateway
        app.add_middleware(Guard, token=gateway.token, metrics=gateway.metrics)
    return app


def _of(request: Request) -> Gateway:
    found: Gateway = request.app.state.gateway
    return found


@router.post(
    "/v1/images",
    status_code=202,
    responses={
        202: {"description": "The broker has stored it.", "headers": _LOCATION},
        **described(400, 401, 403, 408, 413, 415, 422, 503),
    },
    openapi_extra=_BODY,
)
async def submit(
    request: Request,
    response: Response,
    key: Short = None,
    subject: Short = None,
    title: Short = None,
    description: Long = None,
    deadline: Annotated[AwareDatetime | None, Query(description="Of no use later.")] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Pending:
    """Store one image in the queue.

    An `Idempotency-Key` makes it safe to send an image again when the answer was lost: the same key and
    image have the same id and one result. The same key with another image is refused.
    """
    gateway = _of(request)
    metrics, bodies = gateway.metrics, gateway.bodies
    with bodies.room(request):
        image, kind = await bodies.read(request)
        context = {"title": title, "description": description}
        what = ClassifyRequest(
            image=image,
            content_type=kind,
            key=key,
            subject=subject,
            context={name: text for name, text in context.items() if text is not None},
            id=uuid7() if idempotency_key is None else id_of_key(gateway.topic, idempotency_key),
            source=_SOURCE,
            expires=deadline,
        )
        begin = time.monotonic()
        try:
            since = await gateway.intake.accept(what)
        except BaseException:
            metrics.images.labels("failed").inc()
            raise
        metrics.storing.observe(time.monotonic() - begin)
    metrics.images.labels("repeat" if since else "stored").inc()
    response.headers["Location"] = f"/v1/results/{what.id}"
    if since:
        response.headers["Idempotent-Replayed"] = "true"
    return Pending(id=what.id, accepted_at=since or what.time)


@router.get(
    "/v1/results/stream",
    response_class=Response,
    responses={
        200: {"description": "Events `result`, `failed` and `end`.", "content": {"text/event-stream": {}}},
        204: {"description": "All of them were answered before."},
        **described(401, 403, 404, 422, 503),
    },
)
async def stream(
    request: Request,
    ids: Annotated[
        list[str], Query(alias="id", min_length=1, max_length=MOST_IDS, description="May repeat.")
    ],
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """Send what became of some images, each as soon as it is known, then `end`.

    Who was cut off connects again with `Last-Event-ID`, as browsers do, and gets the rest.
    """
    gateway = _of(request)
    ids = list(dict.fromkeys(ids))
    mask = answered(last_event_id, len(ids))
    if mask == (1 << len(ids)) - 1:
        return Response(status_code=204)  # tells a browser not to come again
    known = {*await gateway.accepted(ids)}
    if others := [each for each in ids if each not in known]:
        known.update(await gateway.outcomes.now(others))
    for each in ids:
        if each not in known:
            raise _unknown(each)
    return EventStream(events(gateway.outcomes, ids, mask), gateway.metrics, gateway.streams)


@router.get(
    "/v1/results/{message_id}",
    response_model=ClassifyResult | Failure,
    responses={
        202: {"description": "Not yet.", "model": Pending, "headers": _RETRY},
        **described(401, 403, 404, 422, 503),
    },
)
async def result(
    request: Request,
    message_id: Annotated[str, Path(max_length=_SHORT)],
    wait: Annotated[float, Query(ge=0, le=MOST_WAIT_S, description="Longest wait, seconds.")] = 0.0,
) -> Response:
    """Return what became of one image: its row, or why it failed."""
    gateway = _of(request)
    outcomes = gateway.outcomes
    found = await outcomes.now([message_id])
    if not found:
        entries = await gateway.accepted([message_id])
        if not entries:
            raise _unknown(message_id)
        found = await outcomes.first([message_id], wait) if wait else found
    if found:
        return JSONResponse(found[message_id].model_dump(mode="json"))
    entry = entries[message_id]
    pending = Pending(id=message_id, accepted_at=datetime.fromisoformat(entry.sent_at))
    return JSONResponse(pending.model_dump(mode="json"), 202, {"Retry-After": str(BUSY_S)})


@router.get("/livez", include_in_schema=False)
async def live() -> Response:
    """Return at once: the loop turns."""
    return Response("ok\n", media_type="text/plain")


@router.get("/readyz", include_in_schema=False)
async def ready(request: Request) -> Response:
    """Return whether the broker answers; it is asked once in a while, however many ask."""
    gateway = _of(request)
    if gateway.outcomes.hurried:
        return Response("stopping\n", 503, media_type="text/plain")
    if problem := await gateway.problem():
        return Response(f"{problem}\n", 503, media_type="text/plain")
    return Response("ok\n", media_type="text/plain")


@router.get("/metrics", include_in_schema=False)
async def figures(request: Request) -> Response:
    """Return the metrics."""
    return Response(_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _unknown(message_id: str) -> Refusal:
    return Refusal(
        404, f"{message_id[:100]!r} was not accepted here, and has no result; `Location` of a POST names one"
    )


def openapi(version: str) -> dict[str, Any]:
    """Return OpenAPI's description, without running anything."""
    return application(version).openapi()
