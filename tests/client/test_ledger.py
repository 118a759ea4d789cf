"""The ledger knows of every message before the broker does."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

import pytest

from client import ClassifyRequest, Ledger, StoreError, Submission


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def submissions(*ids: str) -> list[Submission]:
    return [
        Submission(ClassifyRequest(image=each.encode(), id=each, subject=f"s/{each}"), "Bag") for each in ids
    ]


def test_entries_say_what_was_sent_and_how_it_ended(ledger: Ledger) -> None:
    """Recorded, then confirmed or refused, with the truth and the hash of the bytes."""
    ledger.record("run", "images", submissions("a", "b", "c"))
    ledger.confirm(["a"])
    ledger.refuse(["b"])
    assert {each.message_id: each.state for each in ledger.entries()} == {
        "a": "confirmed",
        "b": "refused",
        "c": "sent",
    }
    first = next(ledger.entries())
    assert first.sha256 == hashlib.sha256(b"a").hexdigest()
    assert (first.subject, first.label, first.kind, first.topic) == ("s/a", "Bag", "good", "images")
    assert ledger.ids("images", "sent") == {"c"}
    ledger.close()


def test_entries_are_told_apart_by_run_and_topic(ledger: Ledger) -> None:
    """Several sends share one ledger."""
    ledger.record("one", "images", submissions("a"))
    ledger.record("two", "images", submissions("b"))
    ledger.record("two", "others", submissions("c"))
    assert [each.message_id for each in ledger.entries(run_id="two")] == ["b", "c"]
    assert [each.message_id for each in ledger.entries(topic="images")] == ["a", "b"]
    assert [each.message_id for each in ledger.entries("images", "two")] == ["b"]
    ledger.close()


def test_an_id_that_is_sent_twice_keeps_its_first_entry(ledger: Ledger) -> None:
    """And what was confirmed once stays so."""
    ledger.record("one", "images", submissions("a"))
    ledger.confirm(["a"])
    ledger.record("two", "images", submissions("a"))
    ledger.refuse(["a"])
    assert [(each.run_id, each.state) for each in ledger.entries()] == [("one", "confirmed")]
    ledger.close()


def test_many_ids_are_confirmed_at_once(ledger: Ledger) -> None:
    """More than one SQL statement takes."""
    ids = [str(number) for number in range(2500)]
    ledger.record("run", "images", submissions(*ids))
    ledger.confirm(ids)
    assert ledger.ids("images", "confirmed") == set(ids)
    ledger.close()


def test_a_reader_changes_nothing_and_needs_a_ledger(tmp_path: Path) -> None:
    """Neither a missing file nor somebody's database is taken for empty books."""
    with pytest.raises(StoreError, match="does not exist"):
        Ledger(tmp_path / "none.db", read_only=True)
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE things (id INTEGER)")
    db.close()
    with pytest.raises(StoreError, match="no ledger"):
        Ledger(tmp_path / "other.db", read_only=True)
    assert not (tmp_path / "none.db").exists()


def test_the_default_place_is_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made when it is missing."""
    monkeypatch.setenv("COUTURIER_HOME", str(tmp_path / "home"))
    with Ledger() as ledger:
        assert ledger.path == tmp_path / "home" / "ledger.db"
        assert ledger.path.exists()


def test_a_ledger_of_an_older_couturier_has_no_conflicts(tmp_path: Path) -> None:
    """It is read as it is; the first writer adds what is lacking."""
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE ledger_conflicts")
    with Ledger(path, read_only=True) as old:
        assert old.conflicts("t") == set()
        assert old.places() == []
    with Ledger(path) as new:
        for body in (b"1", b"2"):
            new.record("r", "t", [Submission(ClassifyRequest(image=body, id="m"))], "here")
        assert (new.conflicts("t", "here"), new.conflicts("t", "elsewhere")) == ({"m"}, set())
        assert new.places() == [("here", "t")]
        assert new.known(["m", "n"]) == {"m"}
