"""Where results go: ``open_sink`` picks one by URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker.drivers.options import public_url

from .base import Sink, SinkUnavailable, WriteReport, write_patiently

__all__ = ["Sink", "SinkUnavailable", "WriteReport", "open_sink", "write_patiently"]

_WORKS = "sqlite:///results.db, jsonl:///results.jsonl (four slashes before an absolute path) or console:"


def open_sink(url: str) -> Sink:
    """Return the sink that a URL names, still to be opened.

    Raises:
        ValueError: the URL does not work; the text says what would.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        from client.results import sqlite_path

        from .sqlite import SqliteSink

        return SqliteSink(sqlite_path(url))
    if scheme == "jsonl":
        from .jsonl import JsonlSink

        return JsonlSink(_file(url))
    if scheme == "console":
        from .console import ConsoleSink

        return ConsoleSink()
    raise ValueError(f"SINK_URL={public_url(url)!r} names no sink that is known here; use {_WORKS}")


def _file(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if not url.startswith("jsonl:///") or not path or parts.query or parts.fragment:
        raise ValueError(f"SINK_URL={public_url(url)!r} does not work; use {_WORKS}")
    return Path(path)
