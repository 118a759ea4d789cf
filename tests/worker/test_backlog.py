"""What a worker makes of looks at the backlog: pure, so no clock runs."""

from __future__ import annotations

import pytest

from broker import Lag
from worker.backlog import Backlog


def look(backlog: Backlog, now: float, unsettled: int, settled: int | None) -> None:
    backlog.add(now, [Lag(None, unsettled, str(settled), "")], settled)


def test_nothing_is_known_before_the_first_look_and_while_the_broker_is_away() -> None:
    """An unknown figure is no figure, and certainly not zero."""
    backlog = Backlog()
    assert (backlog.unsettled, backlog.drain_s, backlog.parts()) == (None, None, [])
    look(backlog, 0.0, 100, 0)
    assert (backlog.unsettled, backlog.drain_s) == (100, None)
    backlog.lose()
    assert (backlog.unsettled, backlog.drain_s, backlog.parts()) == (None, None, [])


def test_the_drain_is_the_backlog_over_the_rate_of_the_last_minute() -> None:
    """1,000 done in 20 s, 500 to do."""
    backlog = Backlog()
    look(backlog, 0.0, 1500, 0)
    look(backlog, 10.0, 900, 600)
    look(backlog, 20.0, 500, 1000)
    assert backlog.drain_s == pytest.approx(10.0)
    look(backlog, 30.0, 0, 1500)
    assert backlog.drain_s == 0.0


def test_time_without_work_does_not_slow_the_rate_down() -> None:
    """Half a minute of rest, then 100/s."""
    backlog = Backlog()
    look(backlog, 0.0, 0, 0)
    look(backlog, 30.0, 2000, 0)
    look(backlog, 40.0, 1000, 1000)
    assert backlog.drain_s == pytest.approx(10.0)


def test_where_nothing_gets_done_the_drain_is_large_and_finite() -> None:
    """An autoscaler takes no infinity; what moved more than a minute ago does not count."""
    backlog = Backlog()
    look(backlog, 0.0, 500, 0)
    for now in (10.0, 40.0, 80.0, 120.0):
        look(backlog, now, 400, 100)
    assert backlog.drain_s == pytest.approx(400 * 40.0)


def test_a_backend_that_does_not_count_has_a_backlog_and_no_drain() -> None:
    """Pub/Sub, where somebody asked for it."""
    backlog = Backlog()
    look(backlog, 0.0, 10, None)
    look(backlog, 1.0, 5, None)
    assert (backlog.unsettled, backlog.drain_s) == (5, None)


def test_a_partition_that_stands_still_with_work_is_timed() -> None:
    """Not one that is empty, not one that moves, and an outage of the broker changes nothing."""
    backlog = Backlog()
    for now, moving in ((0.0, "1"), (10.0, "2"), (25.0, "3")):
        backlog.add(now, [Lag(0, 5, "7", "12"), Lag(1, 5, moving, "12"), Lag(2, 0, "12", "12")], None)
        if now == 10.0:
            backlog.lose()
    assert [(each.partition, each.stalled_s) for each in backlog.parts()] == [(0, 25.0), (1, 0.0), (2, 0.0)]
    backlog.add(30.0, [Lag(0, 4, "8", "12")], None)
    assert [(each.partition, each.stalled_s) for each in backlog.parts()] == [(0, 0.0)]
