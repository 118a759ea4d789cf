"""Decode, predict, write: one outcome for every image."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from broker import Delivery, Done, Outcome, Reject
from broker.message import utc_now
from classifier.images import InvalidImage
from client.schema import ResultRow, expires_at

from .sinks.base import Sink, WriteReport, write_patiently

if TYPE_CHECKING:
    from classifier.predict import Classifier, Prediction

log = structlog.stdlib.get_logger("worker")

_DONE = Done()
_NO_TAGS = "[]"
_NO_ANSWER = ("expired", None, None, None, None, None, None, _NO_TAGS)


@dataclass(slots=True)
class Tally:
    """What the handler did.

    Attributes:
        rows: new rows.
        replays: rows that were there already, with the same content.
        conflicts: rows that were there already with other content; the first one was kept.
        invalid: images that cannot be decoded.
        expired: images that came after their deadline.
        refused: rows that the sink refused for what they say.
    """

    rows: int = 0
    replays: int = 0
    conflicts: int = 0
    invalid: int = 0
    expired: int = 0
    refused: int = 0


class ImageHandler:
    """The worker's handler for ``broker.process``; batches may overlap.

    While one batch is written the next is predicted. Predicting itself happens in one thread, because a
    second one would only take the core from the first.

    Args:
        classifier: loaded.
        sink: open.
        worker: names this process in every row.
        sink_deadline_s: for how long a failing write is repeated before the whole worker pauses, seconds.
    """

    def __init__(
        self, classifier: Classifier, sink: Sink, worker: str, sink_deadline_s: float = 10.0
    ) -> None:
        self.tally = Tally()
        self._classifier = classifier
        self._sink = sink
        self._worker = worker
        self._sink_deadline_s = sink_deadline_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        manifest = classifier.manifest
        self.model = (manifest.name, manifest.version, manifest.hash, classifier.engine)

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Classify a batch.

        Returns:
            ``Done`` for every delivery that has a row now, ``Reject`` for one that can never have one.

        Raises:
            Unavailable: the sink is away; nobody is to blame.
            Exception: what the classifier raises; the caller finds out which image it was.
        """
        now = utc_now()
        due = [not _expired(each, now) for each in deliveries]
        images = [each.message.data for each, is_due in zip(deliveries, due, strict=True) if is_due]
        loop = asyncio.get_running_loop()
        answers = iter(await loop.run_in_executor(self._thread, self._classifier.predict, images))
        stored_at = utc_now()
        stamp = stored_at.isoformat()
        outcomes: list[Outcome] = [_DONE] * len(deliveries)
        rows: list[ResultRow] = []
        for place, delivery in enumerate(deliveries):
            answer = next(answers) if due[place] else None
            if isinstance(answer, InvalidImage):
                detail = f"{answer.reason}: {answer.detail}"
                outcomes[place] = Reject("invalid-image", detail, stage="decode")
            else:
                rows.append(self._row(delivery, answer, stored_at, stamp))
        if rows:
            report = await write_patiently(self._sink, rows, self._sink_deadline_s)
            self._count(report)
            if report.refused:
                _blame(deliveries, outcomes, report)
        self.tally.invalid += len(deliveries) - len(rows)
        self.tally.expired += len(due) - len(images)
        return outcomes

    def close(self) -> None:
        """End the thread once the running prediction is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _row(
        self, delivery: Delivery, answer: Prediction | None, stored_at: datetime, stamp: str
    ) -> ResultRow:
        """The row of one image; no answer means that it came after its deadline."""
        message, received_at = delivery.message, delivery.received_at
        queue_s = (received_at - message.time).total_seconds()
        process_s = (stored_at - received_at).total_seconds()
        return ResultRow._make(
            (
                message.id,
                *(_NO_ANSWER if answer is None else _columns(answer)),
                *self.model,
                _text(message.key),
                _text(message.source),
                _text(message.subject),
                delivery.attempt,
                self._worker,
                queue_s,
                process_s,
                queue_s + process_s,
                stamp,
            )
        )

    def _count(self, report: WriteReport) -> None:
        self.tally.rows += report.new
        self.tally.replays += report.identical
        self.tally.conflicts += len(report.conflicts)
        self.tally.refused += len(report.refused)
        if report.conflicts:
            log.warning(
                "same id, other content: the first row was kept",
                count=len(report.conflicts),
                first=report.conflicts[0],
            )


def _blame(deliveries: Sequence[Delivery], outcomes: list[Outcome], report: WriteReport) -> None:
    for place, delivery in enumerate(deliveries):
        why = report.refused.get(delivery.message.id)
        if why is not None and outcomes[place] is _DONE:
            outcomes[place] = Reject("row-refused", why, stage="store")


def _columns(answer: Prediction) -> tuple[str | float | int, ...]:
    """The columns ``status`` to ``tags``."""
    return (
        "ok",
        answer.label,
        answer.label_index,
        answer.confidence,
        answer.runner_up,
        answer.runner_up_confidence,
        answer.group_label,
        _NO_TAGS,
    )


def _expired(delivery: Delivery, now: datetime) -> bool:
    deadline = expires_at(delivery.message)
    return deadline is not None and deadline < now


def _text(value: str | None) -> str | None:
    """Text that any database takes: what a foreign producer sent as raw bytes becomes question marks."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode()
