"""Decode, predict, write: one outcome for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from broker import Delivery, Done, Histogram, Outcome, Reject, tracing
from broker.message import utc_now
from client.context import context_text
from client.schema import ResultRow, expires_at

from .drift import Quality
from .engine import Answer, Crashed, Engine, Refused
from .sinks.base import Sink, WriteReport, write_patiently
from .sinks.timed import TimedSink

log = structlog.stdlib.get_logger("worker")

_DONE = Done()
_NO_ANSWER = ("expired", None, None, None, None, None, None, "[]")


@dataclass(slots=True)
class Tally:
    """What the handler did.

    Attributes:
        rows: new rows.
        replays: rows that were there already, with the same content.
        conflicts: rows that were there already with other content; the first one was kept.
        invalid: images that cannot be decoded.
        crashed: images that killed the engine too often.
        expired: images that came after their deadline.
        refused: rows that the sink refused for what they say.
    """

    rows: int = 0
    replays: int = 0
    conflicts: int = 0
    invalid: int = 0
    crashed: int = 0
    expired: int = 0
    refused: int = 0


class ImageHandler:
    """The worker's handler for ``broker.process``; batches may overlap.

    While one batch is written the next is decoded and predicted.

    Args:
        engine: running.
        sink: open.
        worker: names this process in every row.
        sink_deadline_s: for how long a failing write is repeated before the whole worker pauses, seconds.

    Attributes:
        tally: what it did.
        quality: of its answers, without labels.
        sink: the one given, timed.
    """

    def __init__(self, engine: Engine, sink: Sink, worker: str, sink_deadline_s: float = 10.0) -> None:
        self.tally = Tally()
        self.quality = Quality()
        self.sink = TimedSink(sink)
        self._engine = engine
        self._worker = worker
        self._sink_deadline_s = sink_deadline_s

    @property
    def model(self) -> tuple[str, str, str, str]:
        """Name, version, hash and engine of the model that answers now."""
        return self._engine.model

    @property
    def inference_seconds(self) -> Histogram:
        """Seconds of decoding and predicting a batch."""
        return self._engine.seconds

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Classify a batch.

        Returns:
            ``Done`` for every delivery that has a row now, ``Reject`` for one that can never have one.

        Raises:
            Unavailable: the sink or the engine is away; nobody is to blame.
            EngineError: the engine fails at one of the images; the caller finds out which.
        """
        now = utc_now()
        due = [not _expired(each, now) for each in deliveries]
        wanted = [each.message for each, is_due in zip(deliveries, due, strict=True) if is_due]
        with tracing.step("classify", len(wanted)):
            found = await self._engine.predict([each.data for each in wanted], [each.id for each in wanted])
        answers = iter(found)
        stored_at = utc_now()
        stamp = stored_at.isoformat()
        outcomes: list[Outcome] = [_DONE] * len(deliveries)
        rows: list[ResultRow] = []
        for place, delivery in enumerate(deliveries):
            answer = next(answers) if due[place] else None
            if isinstance(answer, Refused | Crashed):
                outcomes[place] = _rejected(answer)
            else:
                rows.append(self._row(delivery, answer, stored_at, stamp))
        if rows:
            with tracing.step("store", len(rows)):
                report = await write_patiently(self.sink, rows, self._sink_deadline_s)
            self._count(report)
            if report.refused:
                _blame(deliveries, outcomes, report)
        # Only now: after an outage of the sink the same batch comes once more.
        self.tally.expired += len(due) - len(wanted)
        self.tally.invalid += sum(isinstance(each, Refused) for each in found)
        self.tally.crashed += sum(isinstance(each, Crashed) for each in found)
        self.quality.use(self._engine.reference)
        self.quality.count(each for each in found if isinstance(each, Answer))
        return outcomes

    def _row(self, delivery: Delivery, answer: Answer | None, stored_at: datetime, stamp: str) -> ResultRow:
        """The row of one image; no answer means that it came after its deadline."""
        message, received_at = delivery.message, delivery.received_at
        queue_s = (received_at - message.time).total_seconds()
        process_s = (stored_at - received_at).total_seconds()
        return ResultRow._make(
            (
                message.id,
                *(_NO_ANSWER if answer is None else answer.columns),
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
                context_text(message),
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


def _rejected(answer: Refused | Crashed) -> Reject:
    if isinstance(answer, Crashed):
        return Reject("crashed", answer.error, stage=answer.stage)
    return Reject("invalid-image", f"{answer.reason}: {answer.detail}", stage="decode")


def _blame(deliveries: Sequence[Delivery], outcomes: list[Outcome], report: WriteReport) -> None:
    for place, delivery in enumerate(deliveries):
        why = report.refused.get(delivery.message.id)
        if why is not None and outcomes[place] is _DONE:
            outcomes[place] = Reject("row-refused", why, stage="store")


def _expired(delivery: Delivery, now: datetime) -> bool:
    deadline = expires_at(delivery.message)
    return deadline is not None and deadline < now


def _text(value: str | None) -> str | None:
    """Text that any database takes: what a foreign producer sent as raw bytes becomes question marks."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode()
