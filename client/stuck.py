"""The rules by which ``couturier status`` says that something is stuck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker import Lag

if TYPE_CHECKING:
    from .status import Oldest, Queue, Worker

# Workers that settled something so lately are at work, however old the oldest message is.
_IDLE_S = 10.0
_ELSEWHERE = "does it run there, with COUTURIER_HTTP_HOST=0.0.0.0 and this port?"
_KILL = "another worker takes over what it holds"


@dataclass(frozen=True, slots=True)
class Stuck:
    """One thing that does not move: a token for programs, words for people, and the next command."""

    reason: str
    detail: str
    next: str


def stuck(queue: Queue | None, workers: Sequence[Worker], old_s: float) -> list[Stuck]:
    """Say what is stuck, causes first.

    Args:
        queue: what the broker knows; None when it does not answer.
        workers: of its topic and group.
        old_s: a message that is older may be stuck, seconds.
    """
    messages = [] if queue is None else _stuck_messages(queue, workers, old_s)
    return [*_stuck_workers(workers), *messages]


def _stuck_workers(workers: Sequence[Worker]) -> Iterator[Stuck]:
    for each in workers:
        if each.state == "silent":
            hangs = f"its log says more; if it hangs, `kill -KILL {each.pid}`: {_KILL}"
            yield Stuck(
                "worker-silent",
                f"worker {each.name or each.url} does not answer at {each.url}: {each.why}",
                hangs if each.pid else _ELSEWHERE,
            )
    for each in workers:
        if each.state == "frozen":
            yield Stuck(
                "worker-frozen",
                f"worker {each.name}: {each.why}; it holds {each.held:,} message(s)",
                f"`kill -KILL {each.pid}` on its machine: {_KILL}",
            )
    # Many workers mostly wait for one and the same thing.
    outages: dict[str, list[Worker]] = {}
    for each in workers:
        if each.state == "paused":
            outages.setdefault(each.why, []).append(each)
    for why, waiting in outages.items():
        one = f"worker {waiting[0].name} waits"
        yield Stuck(
            "worker-paused",
            f"{one if len(waiting) == 1 else f'{len(waiting)} workers wait'}, with"
            f" {sum(each.held for each in waiting):,} message(s), for an outage to end: {why}",
            "`couturier doctor` looks at the broker and the results",
        )


def _stuck_messages(queue: Queue, workers: Sequence[Worker], old_s: float) -> Iterator[Stuck]:
    unsettled = queue.stats.unsettled if queue.stats else int(queue.oldest is not None)
    at_work = [each for each in workers if each.works]
    if unsettled and not any(each.state != "silent" for each in workers):
        yield Stuck(
            "no-worker",
            f"{unsettled:,} message(s), and no worker that is known here",
            "start one: `couturier worker`; or name those elsewhere: --worker HOST:PORT, COUTURIER_WORKERS",
        )
        return
    oldest = queue.oldest
    if not unsettled or oldest is None or not at_work:
        return
    if oldest.held_s is not None and oldest.held_s > old_s:
        if oldest.worker in {each.name for each in at_work}:
            yield Stuck(
                "held-long",
                f"message {oldest.message_id} is in stage {oldest.stage!r} of worker {oldest.worker} for"
                f" {oldest.held_s:.0f} s",
                "the log of that worker; `couturier doctor` looks at what it may wait for",
            )
    elif oldest.worker is None and oldest.age_s > old_s and all(each.idle_s > _IDLE_S for each in at_work):
        yield _unclaimed(oldest, queue)
    still = _still(queue.lag or (), workers, old_s)
    if still and all(each.state != "paused" for each in workers):
        yield Stuck(
            "partition-stalled",
            "nothing moves in partition " + ", ".join(f"{number} ({count:,})" for number, count in still),
            "has each partition a member that works? `couturier doctor` compares their numbers",
        )


def _unclaimed(oldest: Oldest, queue: Queue) -> Stuck:
    detail = f"message {oldest.message_id}, {oldest.age_s:.0f} s old, is held by no worker that is known here"
    if oldest.attempt > 1:
        failed = f" ({oldest.last_error})" if oldest.last_error else ""
        detail += f"; it failed {oldest.attempt - 1} time(s){failed} and waits for its next try"
    elif queue.stats and queue.stats.delayed:
        detail += f"; {queue.stats.delayed:,} message(s) wait for their next try"
    return Stuck(
        "unclaimed",
        detail,
        "after a crash it comes again by itself; a worker elsewhere may hold it: --worker HOST:PORT asks",
    )


def _still(lag: Sequence[Lag], workers: Sequence[Worker], old_s: float) -> list[tuple[int | None, int]]:
    """Return partitions with work that a worker has watched stand still, with what is in them."""
    found: list[tuple[int | None, int]] = []
    for part in lag:
        watched = [
            float(each.get("stalled_s", 0))
            for worker in workers
            for each in worker.body.get("lag", ())
            # What has changed since the worker looked has moved.
            if (each.get("partition"), each.get("unsettled")) == (part.partition, part.unsettled)
        ]
        if part.unsettled and part.partition is not None and max(watched, default=0.0) > old_s:
            found.append((part.partition, part.unsettled))
    return found
