"""Whatever a message or an error holds, a line of our log can be written, and is one line."""

from __future__ import annotations

import logging

import pytest

from broker.logs import log


def test_every_record_is_one_line_of_text(caplog: pytest.LogCaptureFixture) -> None:
    """Lone surrogates, line breaks and terminal codes are shown by their escapes; all else is left alone."""
    with caplog.at_level(logging.INFO, "broker"):
        log.info("message %s failed: %s", "id-\udcff\ud800", "a\nb\x1b[31m é鍵 \\")
        log.info("message %s failed", "clé")
    assert caplog.messages == [
        "message id-\\udcff\\ud800 failed: a\\nb\\x1b[31m é鍵 \\",
        "message clé failed",
    ]
