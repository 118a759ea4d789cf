"""The retry decision: bounds of the backoff, when attempts are exhausted, how errors are described."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batcher import delivery

from broker import Done, Reject, Retry, RetryPolicy
from broker.processing.breaker import Blame
from broker.processing.dead_letter import ADDED, letter_attributes
from broker.processing.lifecycle import Lifecycle
from broker.processing.outcomes import describe
from broker.processing.verdicts import Handled, decide


@given(
    attempt=st.integers(1, 10_000),
    base=st.floats(0, 100),
    extra=st.floats(0, 1000),
    spread=st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_delay_lies_between_half_its_step_and_its_step(
    attempt: int, base: float, extra: float, spread: float | None
) -> None:
    """Whatever the attempt, the delay is within the jitter of the capped exponential step."""
    policy = RetryPolicy(base=base, cap=base + extra)
    step = min(policy.cap, base * 2.0 ** min(attempt - 1, 62))
    assert step / 2 <= policy.delay(attempt, spread) <= step


def test_delays_double_up_to_the_cap() -> None:
    """At full spread the steps are exact."""
    policy = RetryPolicy(base=0.5, cap=5.0)
    assert [policy.delay(attempt, 1.0) for attempt in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert [policy.delay(attempt, 0.0) for attempt in range(1, 4)] == [0.25, 0.5, 1.0]


def test_delays_differ() -> None:
    """Members that failed together do not come back together."""
    assert len({RetryPolicy().delay(5) for _ in range(20)}) > 10


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_exhausted_at_the_last_one(attempts: int) -> None:
    """``attempts`` counts hand-overs, the first included."""
    policy = RetryPolicy(attempts=attempts)
    assert [policy.exhausted(number) for number in range(1, attempts + 2)] == [False] * (attempts - 1) + [
        True,
        True,
    ]


@pytest.mark.parametrize(
    "fields", [{"attempts": 0}, {"base": -1.0}, {"base": 2.0, "cap": 1.0}, {"base": float("nan")}]
)
def test_policies_out_of_range_are_refused(fields: dict[str, float]) -> None:
    """Each field has its range."""
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**fields)  # type: ignore[arg-type]


class SilentError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("as it is", "as it is"),
        (ValueError("why"), "ValueError: why"),
        (KeyError("k"), "KeyError: 'k'"),
        (TimeoutError(), "TimeoutError"),
        (SilentError(), "SilentError"),
    ],
)
def test_errors_are_described_in_one_line(error: BaseException | str, text: str) -> None:
    """Class and text, or the class alone."""
    assert describe(error) == text


@given(reason=st.text(), stage=st.text(), error=st.text(max_size=3000))
def test_what_is_written_on_a_dead_letter_travels_everywhere(reason: str, stage: str, error: str) -> None:
    """All six attributes are there, are valid text without NUL, and are at most 1,024 bytes long."""
    attributes = letter_attributes(delivery(), reason, stage, error)
    assert set(attributes) == set(ADDED)
    for value in attributes.values():
        assert len(value.encode()) <= 1024
        assert "\0" not in value
    if len(error.encode("utf-8", "backslashreplace")) <= 1024 and "\0" not in error:
        assert attributes["couturier-error"] == error.encode("utf-8", "backslashreplace").decode()


FATES = ["done", "retry", "reject", "untried"]


@given(
    fates=st.lists(
        st.tuples(st.sampled_from(["done", "retry", "reject", "untried"]), st.integers(1, 6)), max_size=30
    ),
    blame=st.sampled_from(["counted", "released", "postponed"]),
    attempts=st.integers(1, 5),
    delay=st.floats(0, 1000),
    max_delay=st.floats(0, 100),
)
def test_every_delivery_gets_exactly_one_verdict(
    fates: list[tuple[str, int]], blame: Blame, attempts: int, delay: float, max_delay: float
) -> None:
    """Done is acked, rejected dies, and a failure costs an attempt only where it is counted."""
    handled, policy = Handled(), RetryPolicy(attempts=attempts)
    deliveries = [replace(delivery(), attempt=attempt) for _, attempt in fates]
    for each, (fate, _) in zip(deliveries, fates, strict=True):
        if fate == "untried":
            handled.untried.append(each)
        else:
            handled.sort_in([each], [{"done": Done(), "retry": Retry("why"), "reject": Reject("bad")}[fate]])
    verdicts = decide(handled, policy, blame, delay, max_delay)
    named = [*verdicts.acks, *verdicts.releases, *(each.delivery for each in verdicts.retries)]
    named += [each.delivery for each in verdicts.letters]
    assert len(named) == len(set(named)) == len(deliveries)
    failed = {each for each, (fate, _) in zip(deliveries, fates, strict=True) if fate == "retry"}
    rejected = {each for each, (fate, _) in zip(deliveries, fates, strict=True) if fate == "reject"}
    exhausted = {each for each in failed if each.attempt >= attempts} if blame == "counted" else set()
    assert {each.delivery for each in verdicts.letters} == rejected | exhausted
    assert {each.reason for each in verdicts.letters if each.delivery in exhausted} <= {"attempts-exhausted"}
    for retry in verdicts.retries:
        assert retry.attempt == retry.delivery.attempt + (blame == "counted")
        assert 0 <= retry.delay <= max_delay


@pytest.mark.parametrize("answer", [[], [Done()] * 3, [Done(), None], [None, "done"]])
def test_what_is_no_answer_is_refused_whole(answer: list[Any]) -> None:
    """Of a wrong answer nothing is taken, not even its good parts."""
    handled = Handled()
    with pytest.raises(TypeError, match="the handler returned"):
        handled.sort_in([delivery(), delivery()], answer)
    assert handled == Handled()


@given(stop_at=st.floats(0, 100), timeout=st.floats(0, 50), now=st.floats(0, 300), held=st.integers(0, 3))
def test_a_drain_ends_when_nothing_is_held_or_in_time(
    stop_at: float, timeout: float, now: float, held: int
) -> None:
    """Before ``stop`` it goes on; afterwards until nothing is held, and never past its deadline."""
    life = Lifecycle(timeout)
    assert (life.end(now, held), life.may_take_in(0), life.may_take_in(1)) == ("go on", True, False)
    assert (life.state(0), life.state(2)) == ("running", "paused")
    life.stop(stop_at)
    life.stop(stop_at + 1000.0)
    assert life.deadline == stop_at + timeout
    assert (life.may_take_in(0), life.state(3)) == (False, "draining")
    expected = "finished" if not held else "too late" if now >= stop_at + timeout else "go on"
    assert life.end(now, held) == expected
