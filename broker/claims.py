"""Where bodies lie that are too large for a broker: a directory or a bucket, each body under its own hash.

::

    .couturier-claims     this is a claim store; if it is missing, the volume is not there
    .couturier-swept      when it was last swept
    ab/<sha256>           a body; ``ab`` are its first two digits
    expired/<sha256>      a body past its retention: found until the next sweep
    tmp/<random>          a body being written

A body is there whole or not at all, and writing it twice is writing it once. It is written anew even where
it lies already, so that its retention begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from .claim_sweep import SWEEP_INTERVAL_S, sweep
from .drivers.options import public_url
from .errors import BrokerError, PermissionDenied, Unavailable
from .logs import log
from .message import Message

T = TypeVar("T")

CLAIM = "couturier-claim"
SIZE = "couturier-claim-size"
ERROR = "couturier-claim-error"
ADDED = (CLAIM, SIZE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,15}")

RETENTION_S = 14 * 86_400.0
MAX_CLAIM_BYTES = 256 * 1024 * 1024
# Bodies on their way at one time, to or from the store, for one broker.
TRANSFERS = 4
# Schemes of fsspec where a file is replaced as a whole: a reader never sees half of one.
_WHOLE = frozenset({"abfs", "az", "file", "gcs", "gs", "memory", "s3", "s3a"})
_MARKER = ".couturier-claims"
# A transfer may take so long, and a second more for each of these bytes.
_PATIENCE_S = 30.0
_SLOWEST_BYTES_S = 1_000_000


class ClaimLost(Exception):  # noqa: N818 - named as the errors of the contract are
    """The body is not in the store, or is not what was stored; trying again does not help."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a message says of a body that travels apart from it.

    Attributes:
        sha256: of the body, 64 lower-case digits; also its name in the store.
        size_bytes: of the body.
    """

    sha256: str
    size_bytes: int


def is_claimed(message: Message) -> bool:
    """Whether the body of ``message`` is, or was, in a claim store."""
    return not message.data and CLAIM in message.attributes


def read_claim(message: Message) -> Claim:
    """Return the claim of a claimed message.

    Raises:
        ClaimLost: it is none of ours. None is used as a path before it has passed here.
    """
    sha256, size = message.attributes[CLAIM], message.attributes.get(SIZE, "")
    if not _SHA256.fullmatch(sha256):
        raise ClaimLost(f"{CLAIM}={sha256[:80]!r} is no SHA-256")
    if not _NUMBER.fullmatch(size):
        raise ClaimLost(f"{SIZE}={size[:80]!r} is no size in bytes")
    return Claim(sha256, int(size))


def with_claim(message: Message, claim: Claim) -> Message:
    """Return ``message`` as it travels."""
    attributes = {**message.attributes, CLAIM: claim.sha256, SIZE: str(claim.size_bytes)}
    return replace(message, data=b"", attributes=attributes)


def with_body(message: Message, data: bytes) -> Message:
    """Return a claimed message as it was published."""
    attributes = {name: value for name, value in message.attributes.items() if name not in (*ADDED, ERROR)}
    return replace(message, data=data, attributes=attributes)


def without_body(message: Message, why: str) -> Message:
    """Return a claimed message that says why it has no body."""
    return replace(message, attributes={**message.attributes, ERROR: why})


def lost_claim(message: Message) -> str:
    """Return why the body of a message cannot be had any more; "" if nothing is wrong with it."""
    return message.attributes.get(ERROR, "") if is_claimed(message) else ""


class ClaimStore:
    """Keeps bodies by their hash. Opens nothing until the first body.

    Args:
        url: a directory (a path or ``file:///...``), ``memory://name``, or a bucket: ``s3://bucket/prefix``,
            ``gs://...``, ``az://...``. Credentials and endpoints are those of fsspec's own environment.
        retention: seconds that a body is kept after it was stored, or its message copied, for the last time;
            longer than any topic keeps messages.
        max_bytes: largest body, at both ends.

    Raises:
        ValueError: the URL is none of these, or needs a package that is not installed.
    """

    def __init__(self, url: str, retention: float = RETENTION_S, *, max_bytes: int = MAX_CLAIM_BYTES) -> None:
        if not 0 < retention < float("inf"):
            raise ValueError(f"retention must be above 0 seconds, not {retention}")
        self.address = public_url(url)
        self.retention = retention
        self.max_bytes = max_bytes
        self._local, self._place = _located(url)
        self._opened: tuple[Any, str] | None = None
        self._begun = False
        self._pool: ThreadPoolExecutor | None = None
        self._closing = threading.Event()
        self._sweep_at = float("-inf")

    async def put(self, data: bytes) -> Claim:
        """Store a body; return once it is stored, for local directories on disk (fsync).

        Raises:
            Unavailable: the store does not answer, or not in time.
            PermissionDenied: it refuses these credentials.
        """
        return await self._in_thread(lambda: self._write(data), len(data))

    async def get(self, claim: Claim) -> bytes:
        """Return a body, which is what was stored to the byte.

        Raises:
            ClaimLost: it is gone or was changed, while the store is there.
            Unavailable: the store does not answer, or not in time.
            PermissionDenied: it refuses these credentials.
        """
        return await self._in_thread(lambda: self._read(claim), claim.size_bytes)

    def sweep_soon(self) -> None:
        """Have bodies past their retention removed in the background, once an hour for all publishers."""
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_INTERVAL_S
            self._threads().submit(self._sweep)

    def close(self) -> None:
        """Stop a sweep and let the threads end; the store can be used again."""
        self._closing.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        # Our own: a store that hangs must not take the threads that others wait for. One is for the sweep.
        if self._pool is None:
            self._closing.clear()
            self._pool = ThreadPoolExecutor(TRANSFERS + 1, thread_name_prefix="claims")
        return self._pool

    async def _in_thread(self, call: Callable[[], T], size_bytes: int) -> T:
        patience = _PATIENCE_S + size_bytes / _SLOWEST_BYTES_S
        try:
            async with asyncio.timeout(patience):
                return await asyncio.get_running_loop().run_in_executor(self._threads(), call)
        except (BrokerError, ClaimLost):
            raise
        except PermissionError as error:
            raise PermissionDenied(f"the claim store {self.address}: {error}") from error
        except Exception as error:
            # Every SDK below fsspec has errors of its own; whatever it is, no message is to blame.
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise Unavailable(f"the claim store {self.address} does not work: {reason}") from error

    def _open(self) -> tuple[Any, str]:
        """Return the file system and the path in it where the store begins."""
        if self._opened is None:
            from fsspec import filesystem  # type: ignore[import-untyped]

            scheme = "file" if self._local else urlsplit(self._place).scheme
            files = filesystem(scheme, use_listings_cache=False)  # What others stored must be seen at once.
            self._opened = files, self._place if self._local else files._strip_protocol(self._place)
        return self._opened

    def _write(self, data: bytes) -> Claim:
        files, root = self._open()
        self._begin(files, root)
        claim = Claim(hashlib.sha256(data).hexdigest(), len(data))
        self._replace(files, root, _body(claim), data)
        return claim

    def _begin(self, files: Any, root: str) -> None:
        """Make the store on first use; later its marker says that what we write goes where readers look."""
        if not files.exists(f"{root}/{_MARKER}"):
            if self._begun:
                raise Unavailable(f"the claim store {self.address} is gone: {_MARKER} is missing")
            if self._local:
                Path(root).mkdir(parents=True, exist_ok=True)
                for folder in Path(root).parents:
                    with contextlib.suppress(OSError):  # It may be another's, who keeps it from us.
                        _sync(folder)
            self._replace(files, root, _MARKER, b"Large bodies of messages; see couturier, docs/broker.md\n")
        self._begun = True

    def _replace(self, files: Any, root: str, name: str, data: bytes) -> None:
        if not self._local:
            files.pipe_file(f"{root}/{name}", data)
            return
        target, temporary = Path(root) / name, Path(root) / "tmp" / uuid4().hex
        # Never the root: if that has gone, its volume has, and the body must not go elsewhere.
        for folder in {temporary.parent, target.parent} - {Path(root)}:
            folder.mkdir(exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            for folder in {target.parent, Path(root)}:
                _sync(folder)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _read(self, claim: Claim) -> bytes:
        if claim.size_bytes > self.max_bytes:
            raise ClaimLost(f"a body of {claim.size_bytes:,} bytes; at most {self.max_bytes:,} are fetched")
        files, root = self._open()
        problem = "is not there; is the store's retention shorter than that of the messages?"
        for name in (_body(claim), f"expired/{claim.sha256}"):
            try:
                # The size is looked at before anything is read into memory.
                if files.info(f"{root}/{name}")["size"] == claim.size_bytes:
                    data: bytes = files.cat_file(f"{root}/{name}")
                    if hashlib.sha256(data).hexdigest() == claim.sha256:
                        return data
                problem = "has other bytes than were published"
            except FileNotFoundError:
                continue
        if not files.exists(f"{root}/{_MARKER}"):
            raise Unavailable(f"{self.address} holds no claim store: {_MARKER} is missing; is it mounted?")
        raise ClaimLost(f"{claim.sha256} in the claim store {self.address} {problem}")

    def _sweep(self) -> None:
        try:
            files, root = self._open()
            if files.exists(f"{root}/{_MARKER}"):
                count = sweep(files, root, self._local, self.retention, self._closing)
                log.info("swept %d file(s) from the claim store %s", count, self.address)
        except Exception as error:
            log.warning("could not sweep the claim store %s: %s; next time", self.address, error)


def _located(url: str) -> tuple[bool, str]:
    """Return whether ``url`` is a local directory, and that directory's path or the bucket's URL."""
    if not url:
        raise ValueError("a claim store needs a directory or the URL of a bucket")
    if "://" not in url:
        return True, str(Path(url).expanduser().absolute())
    parts = urlsplit(url)
    if parts.scheme not in _WHOLE:
        raise ValueError(
            f"{public_url(url)!r} is no place for large bodies; write a directory, s3://bucket/prefix,"
            " gs://bucket/prefix or az://container/prefix"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise ValueError(f"{public_url(url)!r}: write file:///absolute/directory (three slashes)")
        return True, unquote(parts.path)
    if not parts.netloc:
        raise ValueError(f"{public_url(url)!r} names no bucket; write {parts.scheme}://bucket/prefix")
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(parts.scheme)
    except ImportError as error:
        raise ValueError(f"{public_url(url)!r} needs a package that is not installed: {error}") from None
    return False, url


def _body(claim: Claim) -> str:
    return f"{claim.sha256[:2]}/{claim.sha256}"


def _sync(folder: Path) -> None:
    """Force a directory's entries to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
