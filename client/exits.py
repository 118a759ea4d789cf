"""How a command ends: the exit code, and the last line, in the words of the command line."""

from __future__ import annotations

import io
import logging
import re
import signal
import sys
import time
from typing import NoReturn

FAILED, WRONG_CONFIGURATION, UNAVAILABLE, INTERRUPTED = 1, 78, 69, 130
# Looked up by name, because importing the classes would cost every command its start-up time.
_EXIT_CODES = {
    "broker.errors.BrokerError": UNAVAILABLE,
    "classifier.errors.ModelError": WRONG_CONFIGURATION,
    "classifier.errors.MissingExtra": WRONG_CONFIGURATION,
    "classifier.errors.ClassifierError": FAILED,
    "client.errors.ClientError": FAILED,
    "builtins.ValueError": WRONG_CONFIGURATION,
    "builtins.OSError": FAILED,
    "builtins.KeyboardInterrupt": INTERRUPTED,
}
# The Kafka client logs every try to connect, ten a second: once is enough for so long.
_REPEATS_S = 30.0
_ENSURE = re.compile(r"broker\.ensure\('([^']+)'(?:, group='([^']+)')?\)")
_FRAME = re.compile(r"^\S+ \[[^]]*\] \[thrd:[^]]*\]: | \(after \d+ms in state \w+[^)]*\)$")


class KafkaWords(logging.Filter):
    """Lets each complaint of the Kafka client through once in a while, and remembers the newest one."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether it is new."""
        text, now = _FRAME.sub("", record.getMessage()), time.monotonic()
        if record.levelno >= logging.ERROR:
            self.last = text
        said = self._said.get(text)
        if said is not None and now - said < _REPEATS_S:
            return False
        self._said[text] = now
        return True


def listen() -> KafkaWords:
    """Keep what the Kafka client says out of the way: a command's error repeats it, a worker logs it."""
    logger = logging.getLogger("broker.kafka")
    words = KafkaWords()
    logger.filters[:] = [words]
    logger.handlers[:] = [logging.NullHandler()]
    return words


class _Output(io.TextIOWrapper):
    """Standard output that ends the process once nobody reads it, as ``| head`` ends every filter.

    Only here can that be told from a socket whose other end is gone, which must not end anything.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            _leave()

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            _leave()


def _leave() -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    raise AssertionError("SIGPIPE ends a process")


def end_with_reader() -> None:
    """Make a command end without a word when the reader of its standard output leaves."""
    stream = sys.stdout
    # Anything else has been put there by somebody who reads it in another way, such as a test.
    if stream is sys.__stdout__ and isinstance(stream, io.TextIOWrapper):
        sys.stdout = _Output(stream.buffer, stream.encoding, stream.errors, None, stream.line_buffering)


def exit_code(error: BaseException) -> int | None:
    """Return the exit code for an error that a user can cause, or None for a bug of ours."""
    for kind in type(error).__mro__:
        code = _EXIT_CODES.get(f"{kind.__module__}.{kind.__name__}")
        # Ours raise plain ValueError; its subclasses, such as a decoding error, are bugs.
        if code is not None and not (kind is ValueError and type(error) is not ValueError):
            return code
    return None


def last_words(error: BaseException, kafka: str = "") -> str:
    """Return the error in the words of the command line.

    Args:
        error: that ends the command.
        kafka: the newest complaint of the Kafka client.
    """
    text, kind = str(error), type(error).__name__
    if kind == "NotFound":
        # The library advises a call; who types commands needs a command.
        call = _ENSURE.search(text)
        names = "" if call is None else f" {call[1]} --group {call[2] or 'GROUP'}"
        return (
            f"{text.partition(';')[0]}; `couturier topics ensure{names}` creates it, as do `couturier worker`"
            " and `couturier client send`, unless COUTURIER_CREATE=false"
        )
    if kind in ("Unavailable", "PermissionDenied"):
        said = f" ({kafka})" if kafka and kafka not in text else ""
        return f"{text}{said}; `couturier doctor` looks closer"
    return text
