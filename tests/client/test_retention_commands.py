"""How long topics keep messages, as it is set: by variables, by a flag, in days."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.commands import Run


def kept(path: Path) -> dict[str, float]:
    """Days by topic, from the queue file itself."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT name, seconds / 86400 FROM retentions JOIN topics USING (topic_id)"))


def test_what_send_makes_is_kept_for_as_long_as_the_variables_say(run: Run, tmp_path: Path) -> None:
    """Images and dead letters each for their own time; what is there already keeps its own."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db"}
    days = {"COUTURIER_RETENTION": "2", "COUTURIER_DLQ_RETENTION": "30.5"}
    done = run("client", "send", "--images", "2", **where, **days)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "q.db") == {"images": 2.0, "images.classifiers.dlq": 30.5}
    done = run("client", "send", "--images", "2", **where, COUTURIER_RETENTION="3")
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "q.db")["images"] == 2.0


def test_a_topic_is_made_with_a_retention_by_a_flag(run: Run, tmp_path: Path) -> None:
    """And with none without it."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db"}
    assert run("topics", "ensure", "brief", "--group", "g", "--retention", "0.5", **where).returncode == 0
    assert run("topics", "ensure", "usual", "--group", "g", **where).returncode == 0
    assert kept(tmp_path / "q.db") == {"brief": 0.5}


def test_a_retention_that_cannot_be_is_named_with_what_can(run: Run, tmp_path: Path) -> None:
    """Before anything is made: below 0 nowhere, too short or too long as the backend says."""
    where = {"BROKER_URL": f"sqlite:///{tmp_path}/q.db"}
    for value, said in (
        ("-1", "COUTURIER_RETENTION='-1'"),
        ("0.0001", "sqlite backend can keep messages for"),
    ):
        done = run("client", "send", "--images", "1", **where, COUTURIER_RETENTION=value)
        assert done.returncode == 78, done.stderr
        assert said in done.stderr
    done = run("topics", "ensure", "t", "--retention", "0", **where)
    assert done.returncode == 78
    assert "--retention" in done.stderr
