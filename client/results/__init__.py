"""The results table: its columns, its place (``SINK_URL``), its readers and its writers.

One row per message id. The first row stays: a replay with the same content changes nothing, a replay with
other content is counted and reported, never stored.
"""

from __future__ import annotations

from .places import default_url, open_results, public_urls, readable_url, sink_urls, sqlite_path, topic_name
from .sqlite import ResultsReader, ResultsWriter
from .table import COLUMNS, Results, ResultsMissing, WriteReport
from .waiting import wait_for

__all__ = [
    "COLUMNS",
    "Results",
    "ResultsMissing",
    "ResultsReader",
    "ResultsWriter",
    "WriteReport",
    "default_url",
    "open_results",
    "public_urls",
    "readable_url",
    "sink_urls",
    "sqlite_path",
    "topic_name",
    "wait_for",
]
