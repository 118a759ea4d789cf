"""What is stuck, and why: what the broker counts, joined with what the workers say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

from broker import OPERATORS, Broker, Delivery, GroupStats, Lag, NotFound, connect, dead_letter_topic
from broker.message import utc_now

from .stuck import Stuck, stuck
from .workers import FROZEN_S, Answer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Oldest:
    """The oldest message that is not finished.

    Attributes:
        message_id: its id.
        subject: of the message.
        age_s: since it was published, by the publisher's clock, seconds.
        attempt: recorded failures + 1.
        stage: where it is in its worker; None: no worker that answered holds it.
        worker: that holds it.
        held_s: for how long, seconds.
        last_error: of an earlier attempt, as far as a worker that answered remembers it.
    """

    message_id: str
    subject: str | None
    age_s: float
    attempt: int
    stage: str | None = None
    worker: str | None = None
    held_s: float | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """What the broker knows; a part that it could not tell in time is None.

    Attributes:
        address: of the broker, without credentials.
        stats: counts of the group.
        lag: what is unfinished, part by part.
        dead_letters: of the group.
        oldest: unfinished message.
        notes: what is not known, and why.
    """

    address: str
    stats: GroupStats | None = None
    lag: list[Lag] | None = None
    dead_letters: int | None = None
    oldest: Oldest | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process, in its own words.

    Attributes:
        url: of its HTTP server.
        name: its id; None for one that was named and does not answer.
        pid: of its process, if known.
        state: ``starting``, ``running``, ``paused``, ``draining`` or ``stopped``; ``frozen``: its loop does
            not turn; ``silent``: it does not answer.
        why: of a state other than ``running``.
        held: messages that it works on.
        idle_s: since it settled something, seconds.
        restarts: of its engine.
        drain_s: what it takes the whole group to finish what there is, seconds; None if not known.
        body: all that it said.
    """

    url: str
    name: str | None
    pid: int | None
    state: str
    why: str = ""
    held: int = 0
    idle_s: float = 0.0
    restarts: int = 0
    drain_s: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def works(self) -> bool:
        """Whether it takes messages and finishes them."""
        return self.state == "running"


@dataclass(frozen=True, slots=True)
class Report:
    """The whole picture.

    Attributes:
        topic: where images come from.
        group: whose work it is.
        queue: what the broker knows; None when it did not answer.
        error: why it did not.
        workers: those of this topic and group that are known.
        others: how many more work for other topics or groups.
        stuck: what does not move, causes first.
    """

    topic: str
    group: str
    queue: Queue | None
    error: str | None
    workers: list[Worker]
    others: int
    stuck: list[Stuck]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        queue = self.queue
        stats = queue and queue.stats
        return {
            "topic": self.topic,
            "group": self.group,
            "broker": queue and queue.address,
            "error": self.error,
            "stuck": [asdict(each) for each in self.stuck],
            "queue": stats and {**asdict(stats), "unsettled": stats.unsettled},
            "dead_letters": queue and queue.dead_letters,
            "oldest": queue and queue.oldest and asdict(queue.oldest),
            "lag": [asdict(each) for each in (queue and queue.lag) or ()],
            "workers": [
                {name: value for name, value in asdict(each).items() if name != "body"}
                for each in self.workers
            ],
            "failures": failures(self.workers),
            "notes": list(queue.notes) if queue else [],
        }


async def look(topic: str, group: str, patience_s: float) -> Queue:
    """Ask the broker; settles, hides and ages nothing.

    Args:
        topic: ensured before.
        group: ensured before.
        patience_s: for each question; on Pub/Sub a copy of all there is must be received to count it.

    Raises:
        NotFound: topic or group was never ensured.
        BrokerError: the broker does not answer.
    """
    async with connect() as broker:
        notes: list[str] = []

        async def within(what: str, question: Awaitable[T]) -> T | None:
            try:
                async with asyncio.timeout(patience_s):
                    return await question
            except TimeoutError:
                notes.append(f"{what}: not known within {patience_s:g} s; ask with a longer --timeout")
                return None

        counted = broker.capabilities.counts
        stats, lag, dead, oldest = await asyncio.gather(
            within("counts", broker.stats(topic, group)),
            # A backend that cannot count would receive another copy for the same figure.
            within("lag", broker.lag(topic, group)) if counted else asyncio.sleep(0),
            within("dead letters", _dead_letters(broker, topic, group)),
            within("oldest message", _oldest(broker, topic, group)),
        )
        if not counted and stats is not None:
            lag = [Lag(None, stats.unsettled)]
        return Queue(broker.address, stats, lag, dead, oldest, tuple(notes))


async def _dead_letters(broker: Broker, topic: str, group: str) -> int:
    try:
        return (await broker.stats(dead_letter_topic(topic, group), OPERATORS)).unsettled
    except NotFound:
        return 0


async def _oldest(broker: Broker, topic: str, group: str) -> Oldest | None:
    # Closed at once: on Kafka it holds connections, on Pub/Sub a copy of the backlog.
    found = cast("AsyncGenerator[Delivery]", broker.browse(topic, group))
    async with aclosing(found) as deliveries:
        async for delivery in deliveries:
            message = delivery.message
            age_s = max(0.0, (utc_now() - message.time).total_seconds())
            return Oldest(message.id, message.subject, age_s, delivery.attempt)
    return None


def report(
    topic: str, group: str, queue: Queue | BaseException, answers: Iterable[Answer], old_s: float
) -> Report:
    """Join what the broker and the workers said, and say what is stuck.

    Args:
        topic: where images come from.
        group: whose work it is.
        queue: what the broker knows, or why it did not answer.
        answers: of workers, asked for the oldest message.
        old_s: a message that is older may be stuck, seconds.
    """
    mine, others = [], 0
    for each in answers:
        worker = _worker(each)
        place = worker.body or (asdict(each.listed) if each.listed else {})
        if place and (place.get("topic"), place.get("group")) != (topic, group):
            others += 1
        else:
            mine.append(worker)
    if isinstance(queue, BaseException):
        error = str(queue) or type(queue).__name__
        return Report(topic, group, None, error, mine, others, stuck(None, mine, old_s))
    if queue.oldest is not None:
        queue = replace(queue, oldest=_placed(queue.oldest, mine))
    return Report(topic, group, queue, None, mine, others, stuck(queue, mine, old_s))


def failures(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """Return the failures that workers remember, newest first."""
    found = [
        {**each, "worker": worker.name} for worker in workers for each in worker.body.get("failures", ())
    ]
    return sorted(found, key=lambda each: -float(each.get("at", 0)))


def _worker(answer: Answer) -> Worker:
    body, known = answer.body, answer.listed
    if answer.error or "state" not in body:
        why = answer.error or f"HTTP {answer.code}, and no status: no worker"
        name = known.worker if known else None
        return Worker(answer.url, name, known.pid if known and known.here else None, "silent", why)
    state, why = str(body["state"]), str(body.get("outage") or body.get("reason") or "")
    if float(body.get("beat_s", 0)) > FROZEN_S:
        state, why = "frozen", f"its event loop has not turned for {body['beat_s']:.0f} s"
    return Worker(
        url=answer.url,
        name=body.get("worker"),
        pid=body.get("pid"),
        state=state,
        why=why,
        held=int(body.get("held", 0)),
        idle_s=float(body.get("idle_s", 0)),
        restarts=int(body.get("engine", {}).get("restarts", 0)),
        drain_s=body.get("drain_s"),
        body=body,
    )


def _placed(oldest: Oldest, workers: Iterable[Worker]) -> Oldest:
    """Add what the workers know of it."""
    workers = list(workers)
    known = [each for each in failures(workers) if each.get("message_id") == oldest.message_id]
    error = str(known[0].get("error")) if known else None
    for worker in workers:
        held = worker.body.get("message")
        if held:
            return replace(
                oldest,
                attempt=int(held.get("attempt", oldest.attempt)),
                stage=held.get("stage"),
                worker=worker.name,
                held_s=held.get("held_s"),
                last_error=error,
            )
    return replace(oldest, last_error=error)
