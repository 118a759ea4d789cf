"""``SINK_URL``: where results go, and which of these places can be read."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from broker.drivers.options import check_name, public_url
from broker.settings import home

from .table import Results

POSTGRES = ("postgresql", "postgres")
# A comma separates two places only where another one begins: hosts, file names and passwords have commas.
_NEXT = re.compile(r"\s*,\s*(?=[a-z][a-z0-9+.-]*://|(?:console|topic):)")


def default_url() -> str:
    """Return where results go when ``SINK_URL`` is not set: one file in the state directory."""
    return f"sqlite:///{quote(str(home().absolute() / 'results.db'))}"


def sink_urls(text: str) -> list[str]:
    """Return the places that ``SINK_URL`` names, separated by commas."""
    return _NEXT.split(text.strip())


def public_urls(text: str) -> str:
    """Return ``SINK_URL`` without users and passwords, for logs and errors."""
    return ",".join(map(public_url, sink_urls(text)))


def sqlite_path(url: str, origin: str = "SINK_URL") -> Path:
    """Return the file that a ``sqlite:`` URL names: three slashes and a relative path, or four.

    Args:
        url: the URL.
        origin: where it came from, for the error.

    Raises:
        ValueError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise ValueError(
            f"{origin}={public_urls(url)!r} is no SQLite file; run the workers with"
            " SINK_URL=sqlite:////absolute/results.db"
        )
    path = unquote(parts.path[1:])
    if not url.startswith("sqlite:///") or not path or parts.query or parts.fragment:
        raise ValueError(
            f"{origin}={public_url(url)!r} does not work; use sqlite:///relative.db (three slashes) or"
            " sqlite:////absolute.db (four), without options"
        )
    return Path(path)


def topic_name(url: str, origin: str = "SINK_URL") -> str:
    """Return the topic that ``topic:NAME`` names.

    Raises:
        ValueError: no backend takes such a name.
    """
    try:
        return check_name(url.partition(":")[2])
    except ValueError as error:
        raise ValueError(f"{origin}={public_url(url)!r} does not work: use topic:NAME; {error}") from None


def readable_url(text: str | None = None, origin: str = "SINK_URL") -> str:
    """Return the first place that can be read; None means the default place.

    Args:
        text: one URL, or several separated by commas.
        origin: where it came from, for the error.

    Raises:
        ValueError: none can, or it does not work.
    """
    for url in sink_urls(text or default_url()):
        scheme = urlsplit(url).scheme
        if scheme in POSTGRES:
            return url
        if scheme == "sqlite":
            sqlite_path(url, origin)
            return url
    raise ValueError(
        f"{origin}={public_urls(text or '')!r} cannot be read; only a database can: run the workers with"
        " SINK_URL=sqlite:////absolute/results.db or postgresql://user:password@host/database, alone or"
        " beside it, separated by a comma"
    )


def open_results(url: str | None = None) -> Results:
    """Open the results for reading; of several places the first that can be read.

    Args:
        url: as ``SINK_URL``; None means the default place.

    Raises:
        ValueError: nothing of it can be read, or the login does not work.
        ResultsMissing: there is no table yet.
        StoreError: it holds something else.
        StoreUnavailable: it is locked, or away.
    """
    place = readable_url(url)
    if urlsplit(place).scheme == "sqlite":
        from .sqlite import ResultsReader

        return ResultsReader(sqlite_path(place))
    from .postgres import PostgresReader

    return PostgresReader(place)
