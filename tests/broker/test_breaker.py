"""The circuit breaker: opens when everything fails and only then, blames nobody meanwhile, and ends."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker import BreakerPolicy
from broker.processing.breaker import Blame, Breaker

POLICY = BreakerPolicy(failures=20, base=1.0, cap=8.0, probe=4, patience=60.0)


def ids(count: int, first: int = 0) -> list[str]:
    """Return so many message ids."""
    return [str(number) for number in range(first, first + count)]


def judge(breaker: Breaker, now: float, good: int, failed: list[str]) -> Blame:
    """Say how a batch fared in which all failures were first ones."""
    return breaker.judge(now, good, len(failed), failed)


def opened(policy: BreakerPolicy = POLICY, now: float = 0.0) -> Breaker:
    """Return a breaker that opened at ``now``."""
    breaker = Breaker(policy)
    breaker.begin()
    assert judge(breaker, now, 0, ids(policy.failures)) == "released"
    assert breaker.is_open
    return breaker


def test_it_opens_when_many_different_messages_fail_and_none_succeeds() -> None:
    """Nineteen failures count; with the twentieth it opens, and those of that batch count for nothing."""
    breaker = Breaker(POLICY)
    for number in range(19):
        assert judge(breaker, 0.0, 0, ids(1, number)) == "counted"
        assert breaker.allowed(0.0, 0) is None
    assert judge(breaker, 5.0, 0, ids(1, 19)) == "released"
    assert (breaker.allowed(5.9, 0), breaker.allowed(6.0, 0), breaker.wake_at()) == (0, 4, 6.0)


def test_a_few_messages_that_fail_again_and_again_do_not_open_it() -> None:
    """The same nineteen messages may fail as often as they like: they are to blame, not the world."""
    breaker = Breaker(POLICY)
    for _ in range(100):
        assert judge(breaker, 0.0, 0, ids(19)) == "counted"
    assert not breaker.is_open


def test_what_comes_again_and_fails_again_does_not_open_it() -> None:
    """The retries of much poison, left over when all else is done, die as they should."""
    breaker = Breaker(POLICY)
    assert breaker.judge(0.0, 900, 100, ids(100)) == "counted"
    for _ in range(10):
        assert breaker.judge(0.0, 0, 100, []) == "counted"
    assert not breaker.is_open


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=60))
def test_one_success_in_ten_keeps_it_closed(batches: list[tuple[int, int]]) -> None:
    """Where at least a tenth of every batch succeeds it never opens, however many fail."""
    breaker, first = Breaker(POLICY), 0
    for good, bad in batches:
        assert judge(breaker, 0.0, good, ids(min(bad, 9 * good), first)) == "counted"
        first += bad
    assert not breaker.is_open


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.05])
def test_hardly_any_success_does_not_keep_it_closed(ratio: float) -> None:
    """In an outage in which one message in twenty still passes, few attempts are counted before it opens."""
    breaker, counted = Breaker(POLICY), 0
    for number in range(1000):
        good = int((number + 1) * ratio) - int(number * ratio)
        if judge(breaker, 0.0, good, [] if good else ids(1, number)) == "released":
            break
        counted += not good
    assert breaker.is_open
    assert counted <= 60


def test_what_was_running_when_it_opened_blames_nobody_and_decides_nothing() -> None:
    """Batches that began before neither close it nor count; only a probe does."""
    breaker = Breaker(POLICY)
    breaker.begin()
    breaker.begin()
    judge(breaker, 0.0, 0, ids(20))
    assert judge(breaker, 0.5, 0, ids(3, 50)) == "released"
    assert judge(breaker, 0.5, 10, ids(1, 60)) == "released"
    assert breaker.is_open


def test_a_probe_runs_alone() -> None:
    """While anything runs no probe begins; while a probe runs nothing else does."""
    breaker = opened()
    assert breaker.allowed(2.0, 1) == 0
    assert breaker.allowed(2.0, 0) == 4
    breaker.begin()
    assert breaker.allowed(2.0, 1) == 0


def test_probes_that_fail_come_rarer_up_to_the_cap() -> None:
    """The wait doubles; what failed waits longer than the next probe, so that others are tried then."""
    breaker, now, waits = opened(), 0.0, []
    for number in range(6):
        now = breaker.wake_at() or math.nan
        breaker.begin()
        assert judge(breaker, now, 1, ids(3, 100 * number)) == "postponed"
        waits.append((breaker.wake_at() or math.nan) - now)
        assert breaker.delay(now) > breaker.wait == waits[-1]
    assert waits == [2.0, 4.0, 8.0, 8.0, 8.0, 8.0]


def test_every_message_gets_its_turn_in_a_probe() -> None:
    """However many fail for ever, and although they come again before all others, a good one is met."""
    breaker, now, waiting = opened(), 0.0, [(0.0, number) for number in range(100)]
    tried: set[int] = set()
    while len(tried) < 100:
        now = breaker.wake_at() or math.nan
        assert now < 600.0, f"only {len(tried)} of 100 were tried"
        breaker.begin()
        # What was tried before and is due again comes first, as on most backends.
        due = sorted((each for each in waiting if each[0] <= now), key=lambda each: each[1] not in tried)[:4]
        breaker.judge(now, 0, len(due), [])
        for each in due:
            waiting.remove(each)
            waiting.append((now + breaker.delay(now), each[1]))
            tried.add(each[1])


@pytest.mark.parametrize(("good", "bad"), [(1, 0), (1, 1), (2, 2), (4, 0)])
def test_a_probe_that_mostly_succeeds_closes_it(good: int, bad: int) -> None:
    """What fails in it counts as always; the next bad spell begins at nothing."""
    breaker = opened()
    breaker.begin()
    assert judge(breaker, 1.0, good, ids(bad)) == "counted"
    assert not breaker.is_open
    assert breaker.allowed(1.0, 5) is None
    assert judge(breaker, 1.0, 0, ids(19)) == "counted"
    assert judge(breaker, 1.0, 0, ids(1, 19)) == "released"


def test_what_is_rejected_counts_for_nothing() -> None:
    """A batch without successes or failures leaves it as it is; another probe may follow at once."""
    breaker = opened()
    breaker.begin()
    assert judge(breaker, 1.0, 0, []) == "counted"
    assert breaker.allowed(1.0, 0) == 4
    closed = Breaker(POLICY)
    for _ in range(100):
        judge(closed, 0.0, 0, [])
    assert not closed.is_open


def test_after_its_patience_probes_count_again() -> None:
    """A service whose every message fails comes to an end, a probe at a time."""
    breaker, verdicts = opened(), {}
    while (now := breaker.wake_at() or math.nan) < 90.0:
        breaker.begin()
        verdicts[now] = judge(breaker, now, 0, ids(4))
    assert {now < 60.0 for now, blame in verdicts.items() if blame == "postponed"} == {True}
    assert {now >= 60.0 for now, blame in verdicts.items() if blame == "counted"} == {True}


def test_without_a_policy_it_never_opens() -> None:
    """``RetryPolicy(breaker=None)`` counts every failure."""
    breaker = Breaker(None)
    assert judge(breaker, 0.0, 0, ids(1000)) == "counted"
    assert (breaker.allowed(0.0, 3), breaker.limit, breaker.is_open) == (None, None, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"failures": 1},
        {"probe": 0},
        {"base": 0.0},
        {"base": 9.0, "cap": 8.0},
        {"patience": -1.0},
        {"patience": math.nan},
    ],
)
def test_policies_out_of_range_are_refused(fields: dict[str, float]) -> None:
    """Each field has its range, and the error says which values it got."""
    with pytest.raises(ValueError, match="must"):
        BreakerPolicy(**fields)  # type: ignore[arg-type]


class BreakerMachine(RuleBasedStateMachine):
    """Batches of any fate, several at once, at any time."""

    @initialize(probe=st.integers(1, 8), patience=st.sampled_from([0.0, 10.0, 1000.0]))
    def start(self, probe: int, patience: float) -> None:
        self.policy = BreakerPolicy(failures=10, base=1.0, cap=4.0, probe=probe, patience=patience)
        self.breaker = Breaker(self.policy)
        self.now = 0.0
        self.running: list[bool] = []
        self.next_id = 0
        self.counted_in_a_row: set[str] = set()
        self.opened_at: float | None = None

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_batch_begins(self) -> None:
        allowed = self.breaker.allowed(self.now, len(self.running))
        if allowed == 0 or len(self.running) == 3:
            return
        assert allowed is None or (allowed == self.policy.probe and not self.running)
        self.breaker.begin()
        self.running.append(allowed is not None)

    @rule(good=st.integers(0, 10), bad=st.integers(0, 10), new=st.booleans())
    def a_batch_ends(self, good: int, bad: int, new: bool) -> None:
        if not self.running:
            return
        is_probe, was_open = self.running.pop(0), self.breaker.is_open
        failed = ids(bad, self.next_id if new else 0)
        self.next_id += bad
        blame = judge(self.breaker, self.now, good, failed)
        if was_open and not is_probe:
            assert blame == "released"
            assert self.breaker.is_open
        if was_open and is_probe and (good or bad):
            assert self.breaker.is_open == (good < bad)
            patient = self.now < (self.opened_at or 0.0) + self.policy.patience
            assert blame == ("postponed" if good < bad and patient else "counted")
        if blame == "counted" and failed and not was_open:
            self.counted_in_a_row = (self.counted_in_a_row if not good else set()) | set(failed)
            # No message is blamed beyond the number that shows an outage.
            assert good or len(self.counted_in_a_row) < 2 * self.policy.failures
        if good:
            self.counted_in_a_row = set()
        if self.breaker.is_open and not was_open:
            self.opened_at = self.now

    @invariant()
    def says_when_to_look_again(self) -> None:
        """Open, a probe is due within the cap; closed, everything passes."""
        if self.breaker.is_open:
            assert (self.breaker.wake_at() or math.inf) <= self.now + self.policy.cap
        else:
            assert self.breaker.wake_at() is None
            assert self.breaker.allowed(self.now, 0) is None


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
