"""The logger of this package, whose lines can always be written."""

from __future__ import annotations

import logging


class _OneLine(logging.Filter):
    """Escapes what a foreign id or an error may hold: lone surrogates, line breaks, terminal codes."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.isprintable():
            shown = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
            record.msg, record.args = "".join(shown), None
        return True


log = logging.getLogger("broker")
log.addFilter(_OneLine())
