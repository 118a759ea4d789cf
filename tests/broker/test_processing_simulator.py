"""Many seeds of a hostile world find nothing in the processing loop, and each planted bug within a few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from simulated_world import ViolationError, World
from simulation import SimMember, simulate

from broker import Delivery, Done, Outcome, Retry
from broker.errors import BrokerError
from broker.processing import work
from broker.processing.batcher import Batcher
from broker.processing.breaker import Breaker
from broker.processing.lifecycle import Lifecycle
from broker.processing.outages import Outages
from broker.processing.outcomes import RetryPolicy
from broker.processing.settler import Settler
from broker.processing.verdicts import Handled, Verdicts
from broker.processing.work import Work

# A run that fails says its seed: `simulate(seed)` repeats it.
SEEDS = 100
# A planted bug is found within so many.
FOUND_WITHIN = 60

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_nothing_is_lost_in_a_hostile_world(first: int) -> None:
    """Whatever fails, stalls, crashes or is stopped: no invariant breaks, and afterwards all is settled."""
    for seed in range(first, first + 20):
        simulate(seed)


def test_the_world_is_hostile_enough() -> None:
    """Among the seeds each kind of fault happens, and each kind of message."""
    worlds = [World(seed) for seed in range(SEEDS)]
    for fault in ("latency", "fails_before", "fails_after", "crashes", "stalls", "stops"):
        assert sum(getattr(world, fault) > 0 for world in worlds) >= 20, fault
        assert sum(getattr(world, fault) == 0 for world in worlds) >= 10, fault
    for what in ("sink", "letters", "model"):
        assert sum(bool(world.down[what]) for world in worlds) >= 20, what
    assert {kind for world in worlds for kind in world.kinds.values()} == {"good", "flaky", "poison", "bad"}


@pytest.mark.parametrize("seed", [3, 16, 45])
def test_a_seed_repeats_itself(seed: int) -> None:
    """The same seed leads to the same acks in the same order, so what it found can be looked at."""
    first, second = simulate(seed), simulate(seed)
    assert len(first.log) >= 10
    assert first.log == second.log


def acks_before_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    bury = Settler._bury

    async def early(self: Settler, letters: Any, held: Any) -> None:
        await self._persist(held, acks=[each.delivery for each in letters])
        await bury(self, letters, held)

    monkeypatch.setattr(Settler, "_bury", early)


def acks_before_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Work.run

    async def early(self: Work, batch: list[Delivery]) -> None:
        await self._settler.settle(Verdicts(acks=batch), self._watch.enter(batch, "settling"))
        await run(self, batch)

    monkeypatch.setattr(Work, "run", early)


def takes_an_unstored_letter_for_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    store_one = Settler._store_one

    async def lenient(self: Settler, letter: Any, where: Any) -> None:
        try:
            await store_one(self, letter, where)
        except BrokerError:
            return

    monkeypatch.setattr(Settler, "_store_one", lenient)


def counts_attempts_in_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def impatient(self: Outages, is_outage: Any, call: Callable[[], Any], held: Any = None) -> Any:
        return await call()

    monkeypatch.setattr(Outages, "outlast", impatient)


def counts_attempts_while_the_breaker_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "judge", lambda *_: "counted")


def tries_nothing_while_the_breaker_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "allowed", lambda self, *_: 0 if self.is_open else None)


def keeps_trying_the_same_in_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "delay", lambda self, now: 0.0)
    monkeypatch.setattr(Breaker, "judge", _never_counting(Breaker.judge))


def _never_counting(judge: Any) -> Any:
    def judged(self: Breaker, now: float, succeeded: int, failed: int, fresh: Sequence[str]) -> str:
        blame = judge(self, now, succeeded, failed, fresh)
        return "postponed" if self.is_open and blame == "counted" else str(blame)

    return judged


def blames_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def coarse(call: Any, batch: Sequence[Delivery], limit: int | None) -> Handled:
        handled = Handled()
        try:
            handled.sort_in(batch, await call(batch))
        except Exception as error:
            handled.failed += [(each, Retry(error)) for each in batch]
        return handled

    monkeypatch.setattr(work, "handle", coarse)


def gives_the_answers_to_the_wrong_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    sort_in = Handled.sort_in

    def crossed(self: Handled, batch: Sequence[Delivery], outcomes: Sequence[Outcome]) -> None:
        sort_in(self, batch, outcomes[::-1])

    monkeypatch.setattr(Handled, "sort_in", crossed)


def takes_a_failure_for_done(monkeypatch: pytest.MonkeyPatch) -> None:
    sort_in = Handled.sort_in

    def hopeful(self: Handled, batch: Sequence[Delivery], outcomes: Sequence[Outcome]) -> None:
        sort_in(self, batch, [Done() if isinstance(each, Retry) else each for each in outcomes])

    monkeypatch.setattr(Handled, "sort_in", hopeful)


def gives_up_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "exhausted", lambda self, attempt: attempt >= 2)


def never_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "exhausted", lambda self, attempt: False)


def acks_what_it_hands_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def final(self: Work, deliveries: list[Delivery]) -> None:
        await self._settler.settle(Verdicts(acks=deliveries), self._watch.enter(deliveries, "settling"))

    monkeypatch.setattr(Work, "hand_back", final)


def loses_the_last_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Batcher.take

    def careless(self: Batcher, now: float, running: int, at_most: int | None = None) -> list[Delivery]:
        batch = take(self, now, running, at_most)
        return batch[:-1] if len(batch) > 1 else batch

    monkeypatch.setattr(Batcher, "take", careless)


def takes_in_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batcher, "room", property(lambda self: 200))


def drops_a_batch_on_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Lifecycle, now: float, held: int) -> str:
        return "finished" if self.draining else "go on"

    monkeypatch.setattr(Lifecycle, "end", hasty)


def settles_without_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(pending: dict[int, Any], delivery: Delivery, lost: list[Delivery]) -> Any:
        return pending.get(delivery.receipt.seq)

    monkeypatch.setattr(SimMember, "_held", staticmethod(lenient))


BUGS: list[tuple[Patch, str]] = [
    (acks_before_the_letter, "I2"),
    (acks_before_the_row, "I2"),
    (takes_an_unstored_letter_for_stored, "I2"),
    (counts_attempts_in_an_outage, ""),
    (counts_attempts_while_the_breaker_is_open, "I9"),
    (tries_nothing_while_the_breaker_is_open, "liveness"),
    (keeps_trying_the_same_in_probes, "liveness"),
    (blames_the_whole_batch, "I"),
    (gives_the_answers_to_the_wrong_messages, "I"),
    (takes_a_failure_for_done, "I2"),
    (gives_up_too_early, "I"),
    (never_gives_up, "liveness"),
    (acks_what_it_hands_back, "I2"),
    (loses_the_last_of_a_batch, ""),
    (takes_in_without_bound, "I6"),
    (drops_a_batch_on_a_drain, "I1"),
    (settles_without_the_lease, "I3"),
]


@pytest.mark.parametrize(("plant", "invariant"), BUGS, ids=[plant.__name__ for plant, _ in BUGS])
def test_a_planted_bug_is_found(plant: Patch, invariant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within few seeds, and by the invariant that it breaks."""
    plant(monkeypatch)
    for seed in range(FOUND_WITHIN):
        try:
            simulate(seed)
        except (ViolationError, BrokerError) as found:
            text = str(found).removeprefix(f"seed {seed}: ")
            assert text.startswith(invariant), text
            return
    pytest.fail(f"not found within {FOUND_WITHIN} seeds")
