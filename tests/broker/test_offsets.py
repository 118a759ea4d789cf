"""The offset tracker: whatever the order of verdicts, only finished work is ever committed as finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.drivers.offsets import Partition, Progress


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Ascending offsets with holes, and the order in which some of them are finished."""
    gaps = draw(st.lists(st.integers(1, 4), min_size=1, max_size=60))
    offsets = [sum(gaps[: n + 1]) + 99 for n in range(len(gaps))]
    finished = draw(st.lists(st.sampled_from(offsets), unique=True))
    return offsets, finished


@given(histories(), st.integers(0, 200))
def test_a_commit_says_exactly_what_is_finished(history: tuple[list[int], list[int]], cut: int) -> None:
    """Read at any time, a commit covers every finished offset and no other; a successor takes on the rest."""
    offsets, finished = history
    first = Partition(1, Progress(offsets[0], offsets[0]))
    assert all(first.receive(offset) for offset in offsets)
    for offset in finished[:cut]:
        first.finish(offset)
    done = set(finished[:cut])
    progress = first.progress()
    assert {offset for offset in offsets if progress.is_finished(offset)} == done
    assert progress.position <= min(
        [offset for offset in offsets if offset not in done], default=offsets[-1] + 1
    )
    found = Progress.parse(progress.position, progress.metadata())
    assert found == progress
    second = Partition(2, found)
    left = [offset for offset in offsets if offset >= found.position and second.receive(offset)]
    assert left == [offset for offset in offsets if offset not in done]
    for offset in left:
        second.finish(offset)
    assert second.progress().position == offsets[-1] + 1
    assert second.progress().beyond == ()


@given(histories(), st.integers(0, 60))
def test_a_successor_that_read_little_forgets_nothing(
    history: tuple[list[int], list[int]], read: int
) -> None:
    """What was finished before an assignment is still finished in its commits, read again or not."""
    offsets, finished = history
    first = Partition(1, Progress(offsets[0], offsets[0]))
    for offset in offsets:
        first.receive(offset)
    for offset in finished:
        first.finish(offset)
    second = Partition(2, first.progress())
    for offset in [each for each in offsets if each >= second.begin.position][:read]:
        second.receive(offset)
    assert {each for each in offsets if second.progress().is_finished(each)} == set(finished)


def test_a_slow_message_holds_the_position_back() -> None:
    """With everything but the first finished, the position stays and the rest is in the metadata."""
    partition = Partition(1, Progress(10, 10))
    for offset in range(10, 2010):
        partition.receive(offset)
    for offset in range(11, 2010):
        partition.finish(offset)
    progress = partition.progress()
    assert (progress.position, progress.beyond) == (10, ((11, 2010),))
    assert len(progress.metadata()) < 30
    assert not partition.full
    partition.finish(10)
    assert partition.progress() == Progress(2010, 10)


def test_metadata_never_exceeds_what_a_broker_takes() -> None:
    """Scattered verdicts fill the metadata: the partition says so in time; what is cut is done again."""
    partition = Partition(1, Progress(0, 0))
    for offset in range(20_000):
        partition.receive(offset)
    filled_at = None
    for offset in range(1, 20_000, 2):
        partition.finish(offset)
        if filled_at is None and partition.full:
            filled_at = offset
    assert filled_at is not None
    assert filled_at > 1000
    text = partition.progress().metadata()
    assert len(text) <= 4096
    found = Progress.parse(0, text)
    finished = {offset for offset in range(20_000) if found.is_finished(offset)}
    assert finished < set(range(1, 20_000, 2))
    assert len(finished) > 1000


def test_foreign_metadata_counts_for_nothing() -> None:
    """Commits of other programs are read as plain positions."""
    for text in (None, "", "x", "c1;x;5;!!", "c2;x;0;", "c1;0;", "c1;x;a;", "c1;x;0;gA==", "c1;x;0;AQ=="):
        assert Progress.parse(7, text).beyond == ()
        assert Progress.parse(7, text).position == 7
    assert Progress.parse(7, "c1;;3;") == Progress(7, 3)
    assert Progress.parse(7, "c1;abc+/D=;3;") == Progress(7, 3, topic="abc+/D=")


def test_a_record_that_comes_again_is_not_taken_twice() -> None:
    """An offset below what was received is refused."""
    partition = Partition(1, Progress(0, 0))
    assert partition.receive(0)
    assert not partition.receive(0)
    assert partition.receive(5)
    assert not partition.receive(3)


def test_nothing_new_is_not_committed_again() -> None:
    """A commit is due only when it differs from the last one; one that failed is due again."""
    partition = Partition(1, Progress(4, 0))
    assert partition.uncommitted() is None
    partition.receive(4)
    assert partition.uncommitted() is None
    partition.finish(4)
    news = partition.uncommitted()
    assert news == Progress(5, 0)
    partition.sent(news)
    assert partition.uncommitted() is None
    partition.refused()
    assert partition.uncommitted() == news


def test_what_was_sent_is_unsure_until_the_broker_says_so() -> None:
    """An answer to an older commit proves nothing about the newer one."""
    partition = Partition(1, Progress(4, 0))
    partition.receive(4)
    partition.receive(5)
    partition.finish(4)
    older = partition.progress()
    partition.sent(older)
    partition.finish(5)
    newer = partition.progress()
    partition.sent(newer)
    partition.stored(older.position, older.metadata())
    assert partition.uncommitted(unsure=True) == newer
    partition.stored(newer.position, newer.metadata())
    assert partition.uncommitted(unsure=True) is None


def test_a_long_wait_for_a_slow_message_is_bounded() -> None:
    """A partition takes no more when very many finished records wait behind an unfinished one."""
    partition = Partition(1, Progress(0, 0))
    for offset in range(100_000):
        assert not partition.full
        partition.receive(offset)
        if offset:
            partition.finish(offset)
    assert partition.full
    assert len(partition.progress().metadata()) < 30
    partition.finish(0)
    assert not partition.full
    assert partition.progress() == Progress(100_000, 0)


def test_a_topic_of_the_same_name_is_told_from_the_old_one() -> None:
    """The identity is adopted where none was known, and refused where it is another."""
    partition = Partition(1, Progress(4, 0))
    assert partition.identify("one")
    assert partition.uncommitted() is None
    assert partition.progress().topic == "one"
    assert partition.identify("one")
    assert not partition.identify("two")
    assert partition.progress().topic == "one"
