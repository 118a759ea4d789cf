"""Where results go: ``open_sink`` picks by URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from broker.drivers.options import public_url
from broker.limits import days
from client.results.places import POSTGRES, public_urls, sink_urls, topic_name

from .base import Sink, SinkUnavailable, WriteReport, write_patiently

if TYPE_CHECKING:
    from .retention import Prunable

__all__ = ["Sink", "SinkUnavailable", "WriteReport", "open_sink", "write_patiently"]

_WORKS = (
    "sqlite:///results.db, postgresql://user:password@host/database, jsonl:///results.jsonl (four slashes"
    " before an absolute path), console: or topic:NAME; several are separated by commas"
)


def open_sink(url: str, keep_days: float | None = None, create: bool = True) -> Sink:
    """Return the sink that ``SINK_URL`` names, still to be opened.

    Args:
        url: of one place, or of several, separated by commas.
        keep_days: rows in databases are removed after so many days; None keeps them. As long a new result
            topic keeps its events; None means a week.
        create: make a result topic that is missing.

    Raises:
        ValueError: the URL does not work; the text says what would.
    """
    places = sink_urls(url)
    if keep_days is not None and not any(_is_database(each) or _is_topic(each) for each in places):
        raise ValueError(
            f"COUTURIER_RESULTS_RETENTION={keep_days:g} needs a database or a topic, and"
            f" SINK_URL={public_urls(url)!r} names none; unset it, or use sqlite:, postgresql: or topic:"
        )
    sinks = [_open_one(each, keep_days, create) for each in places]
    if len(sinks) == 1:
        return sinks[0]
    if len(set(places)) < len(places):
        raise ValueError(f"SINK_URL={public_urls(url)!r} names one place twice")
    from .several import SeveralSinks

    return SeveralSinks(sinks)


def _open_one(url: str, keep_days: float | None, create: bool) -> Sink:
    scheme, _, rest = url.partition(":")
    if _is_database(url):
        sink = _open_database(url)
        if keep_days is None:
            return sink
        from .retention import KeptForDays

        return KeptForDays(sink, keep_days)
    if _is_topic(url):
        from .topic import TopicSink

        return TopicSink(topic_name(url), days(keep_days), create)
    if scheme == "jsonl":
        from .jsonl import JsonlSink

        return JsonlSink(_file(url))
    if scheme == "console" and not rest:
        from .console import ConsoleSink

        return ConsoleSink()
    raise ValueError(f"SINK_URL={public_url(url)!r} names no sink that is known here; use {_WORKS}")


def _open_database(url: str) -> Prunable:
    if urlsplit(url).scheme in POSTGRES:
        from .postgres import PostgresSink

        return PostgresSink(url)
    from client.results import sqlite_path

    from .sqlite import SqliteSink

    return SqliteSink(sqlite_path(url))


def _is_database(url: str) -> bool:
    return url.partition(":")[0] in (*POSTGRES, "sqlite")


def _is_topic(url: str) -> bool:
    return url.partition(":")[0] == "topic"


def _file(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if not url.startswith("jsonl:///") or not path or parts.query or parts.fragment:
        raise ValueError(f"SINK_URL={public_url(url)!r} does not work; use {_WORKS}")
    return Path(path)
