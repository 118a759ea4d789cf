"""Who may come in: the first thing that every request meets."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import problem

# Probes carry no token, and the description of the interface is no secret.
OPEN = ("/livez", "/readyz", "/openapi.json", "/docs")
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE")
_HERE = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Lets requests in that carry the token; without one, those that a web page could not have sent.

    A page in a browser on this machine can send requests here, too. Without a token, what names another host
    (DNS rebinding) or comes from another origin (cross-site request forgery) is refused.

    Args:
        app: what is guarded.
        token: that is demanded; None for none.
        metrics: told of every request.
    """

    def __init__(self, app: ASGIApp, token: bytes | None, metrics: Metrics) -> None:
        self._app = app
        self._token = token
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        code = 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, str(code)).inc()

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is not None:
            if scope["path"] in OPEN or self._is_known(headers.get(b"authorization", "")):
                return None
            return problem(
                401,
                "send the header `Authorization: Bearer TOKEN`, with the token in COUTURIER_GATEWAY_TOKEN of"
                " the gateway",
                {"WWW-Authenticate": "Bearer"},
            )
        host = headers.get(b"host", "")
        if _hostname(f"//{host}") not in _HERE:
            return problem(
                403,
                f"Host {host[:100]!r} is not this machine; a gateway that others use needs"
                " COUTURIER_GATEWAY_TOKEN",
            )
        origin = headers.get(b"origin")
        if origin is not None and origin != f"http://{host}":
            return problem(403, f"Origin {origin[:100]!r} is another site's; set COUTURIER_GATEWAY_TOKEN")
        return None

    def _is_known(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("latin-1"), self._token or b""
        )


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
