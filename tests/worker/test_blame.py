"""Who is blamed when the engine dies: every image that kills it, no other, and at what price."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.blame import Trial

# What an image does to the process: nothing, kill it where that is seen, or kill it unseen.
KINDS = st.sampled_from(["good", "seen", "unseen"])


def run(kinds: list[str], trial: Trial) -> tuple[set[int], dict[int, int], int]:
    """Play a process; return who was condemned, how often each was answered, and the deaths."""
    condemned: set[int] = set()
    answered: dict[int, int] = {}
    deaths = 0
    while places := trial.next():
        seen = next((index for index, place in enumerate(places) if kinds[place] == "seen"), None)
        if seen is None and not any(kinds[place] == "unseen" for place in places):
            for place in places:
                answered[place] = answered.get(place, 0) + 1
            trial.answered()
            continue
        deaths += 1
        assert deaths < 10_000
        place = trial.died(seen)
        if place is not None:
            condemned.add(place)
    return condemned, answered, deaths


@given(st.lists(KINDS, max_size=40), st.integers(1, 5))
def test_exactly_the_deadly_images_are_condemned(kinds: list[str], limit: int) -> None:
    """The others are answered once each, and a deadly one costs as many deaths as are allowed."""
    condemned, answered, deaths = run(kinds, Trial([0] * len(kinds), limit))
    deadly = {place for place, kind in enumerate(kinds) if kind != "good"}
    assert condemned == deadly
    assert answered == {place: 1 for place, kind in enumerate(kinds) if kind == "good"}
    assert deaths <= len(deadly) * max(limit, 2)


@given(st.lists(st.tuples(KINDS, st.integers(0, 4)), max_size=20), st.integers(1, 5))
def test_what_is_known_of_an_image_counts(images: list[tuple[str, int]], limit: int) -> None:
    """A suspect is tried alone, and one that proves good is cleared."""
    kinds, known = [kind for kind, _ in images], [min(crashes, limit - 1) for _, crashes in images]
    trial = Trial(known, limit)
    for place, crashes in enumerate(known):
        if crashes:
            assert [place] in trial._groups
    condemned, answered, _ = run(kinds, trial)
    assert condemned == {place for place, kind in enumerate(kinds) if kind != "good"}
    assert all(trial.crashes[place] == 0 for place in answered)


def test_an_image_seen_to_kill_is_tried_again_alone_and_its_neighbours_together() -> None:
    """They do not wait for it, and are not tried one by one."""
    trial = Trial([0] * 4, 2)
    assert trial.next() == [0, 1, 2, 3]
    assert trial.died(2) is None
    assert trial.next() == [0, 1, 3]
    trial.answered()
    assert trial.next() == [2]
    assert trial.died(0) == 2
    assert trial.next() == []
    assert trial.crashes == [0, 0, 2, 0]


def test_after_a_death_that_could_be_anyones_each_is_tried_alone() -> None:
    """Who dies then answers for both."""
    trial = Trial([0] * 3, 3)
    assert trial.died(None) is None
    assert [trial.next(), trial.crashes] == [[0], [0, 0, 0]]
    trial.answered()
    assert trial.died(None) is None
    assert trial.crashes == [0, 2, 0]
    assert trial.next() == [2]
    trial.answered()
    assert trial.next() == [1]
    assert trial.died(None) == 1


def test_a_death_that_nobody_repeats_is_nobodys() -> None:
    """The process was killed from outside: all are answered, none has anything to answer for."""
    trial = Trial([0] * 3, 1)
    assert trial.died(None) is None
    for place in range(3):
        assert trial.next() == [place]
        trial.answered()
    assert trial.next() == []
    assert trial.crashes == [0, 0, 0]
