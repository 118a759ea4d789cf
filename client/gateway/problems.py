"""What a client is told when something does not work: RFC 9457, ``application/problem+json``."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from broker import BrokerError, InvalidMessage, MessageTooLarge

from ..errors import ClientError
from .intake import KeyReused

# When to try again, seconds.
BUSY_S, AWAY_S = 1, 5


class Problem(BaseModel):
    """What does not work, and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Refusal(Exception):  # noqa: N818 - reads as what it is
    """A request is answered with a problem.

    Args:
        status: of HTTP.
        detail: what does not work, and what to do.
        headers: of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer that says it."""
    said = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(said.model_dump(), status, dict(headers or {}), "application/problem+json")


def described(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these answers."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in codes}


def busy(detail: str) -> Refusal:
    """Return what is said when too much is asked for at once."""
    return Refusal(503, detail, {"Retry-After": str(BUSY_S)})


def answer(_: Request, error: Exception) -> JSONResponse:
    """Return the answer to an error of ours, of the broker, or of the framework."""
    refusal = _refusal(error)
    return problem(refusal.status, refusal.detail, refusal.headers)


def _refusal(error: Exception) -> Refusal:
    status, detail, headers = 503, str(error), None
    match error:
        case Refusal():
            return error
        case HTTPException():
            status, detail, headers = error.status_code, str(error.detail), error.headers
        case ClientDisconnect():
            status, detail = 400, "the body ended early"  # nobody reads it
        case RequestValidationError():
            status, detail = 422, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        case KeyReused():
            status, detail = 422, f"{error}; use a new key for a new image"
        case MessageTooLarge():
            status = 413
        case InvalidMessage():
            status = 422
        case BrokerError():
            detail = (
                f"the image is not stored for sure: {error}; send it again, with the same Idempotency-Key"
            )
    if status == 503:
        headers = {"Retry-After": str(AWAY_S)}
    return Refusal(status, detail, headers)


def install(app: FastAPI) -> None:
    """Have every error answered in this form."""
    for kind in (Refusal, HTTPException, ClientDisconnect, RequestValidationError, BrokerError, ClientError):
        app.add_exception_handler(kind, answer)
