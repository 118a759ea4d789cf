"""An image out of the body of a request, raw or as a form, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import python_multipart  # noqa: F401 - starlette would miss it only when the first form comes
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .metrics import Metrics
from .problems import Refusal, busy

TYPES = ("image/png", "image/jpeg")
FORM = "multipart/form-data"
PART = "image"
# For the headers and boundaries of a form.
_FORM_BYTES = 16 * 1024
# All bodies that are being read or stored.
_HELD_BYTES = 256 * 1024 * 1024
# A body has this long to come in: 16 MiB at 4 Mbit/s.
_BODY_S = 30.0


class Bodies:
    """Reads bodies, never holding more than a limit of them.

    Args:
        max_bytes: of one image.
        metrics: told how much is held.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._held = 0

    @contextmanager
    def room(self, request: Request) -> Iterator[None]:
        """Keep room for the body of a request while the block runs.

        Raises:
            Refusal: there is none now, or the body is too large.
        """
        size = self._declared(request)
        if self._held and self._held + size > _HELD_BYTES:
            raise busy("too many images are on their way in; send it again")
        self._hold(size)
        try:
            yield
        finally:
            self._hold(-size)

    async def read(self, request: Request) -> tuple[bytes, str]:
        """Return an image and its media type.

        Raises:
            Refusal: it is too large, too slow, or not in a form that is taken.
            ClientDisconnect: the client went away.
        """
        kind = _media_type(request.headers.get("content-type"))
        coding = request.headers.get("content-encoding", "identity")
        if kind not in (*TYPES, FORM) or coding.lower() != "identity":
            raise _unsupported(kind if coding.lower() == "identity" else f"Content-Encoding {coding}")
        try:
            async with asyncio.timeout(_BODY_S):
                body = await self._body(request, self._limit(kind))
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {_BODY_S:g} s") from None
        image, kind = await self._part(request, body) if kind == FORM else (body, kind)
        if not image:
            raise Refusal(400, "the image is empty; with curl, send it as `--data-binary @image.png`")
        if len(image) > self._max_bytes:
            raise self._too_large()
        return image, kind

    def _declared(self, request: Request) -> int:
        limit = self._limit(_media_type(request.headers.get("content-type")))
        length = request.headers.get("content-length", "")
        size = int(length) if length.isascii() and length.isdigit() else limit
        if size > limit:
            raise self._too_large()
        return size

    def _limit(self, kind: str) -> int:
        return self._max_bytes + (_FORM_BYTES if kind == FORM else 0)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"an image has at most {self._max_bytes:,} bytes here")

    async def _body(self, request: Request, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise self._too_large()
            chunks.append(chunk)
        return b"".join(chunks)

    async def _part(self, request: Request, body: bytes) -> tuple[bytes, str]:
        parser = MultiPartParser(request.headers, _once(body), max_files=1, max_fields=0)
        parser.spool_max_size = len(body) + 1  # nothing of it is written to a disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Refusal(
                400,
                f"the form cannot be read: {error.message}; it has one file,"
                f" {PART!r}, and all else stands in the address",
            ) from None
        try:
            part = form.get(PART)
            if not isinstance(part, UploadFile):
                raise Refusal(400, f"the form has no file {PART!r}; with curl: -F '{PART}=@image.png'")
            kind = _media_type(part.content_type)
            if kind not in TYPES:
                raise _unsupported(kind)
            return await part.read(), kind
        finally:
            await form.close()

    def _hold(self, size: int) -> None:
        self._held += size
        self._metrics.held.set(self._held)


def _media_type(header: str | None) -> str:
    return (header or "").partition(";")[0].strip().lower()


def _unsupported(kind: str) -> Refusal:
    taken = ", ".join((*TYPES, FORM))
    return Refusal(
        415,
        f"{kind[:100] or 'no Content-Type'} is not taken, only {taken}; with curl: -H 'Content-Type:"
        f" image/png' --data-binary @image.png, or -F '{PART}=@image.png'",
        {"Accept": taken},
    )


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
