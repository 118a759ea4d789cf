"""``couturier audit`` says what plain SQL and the broker's own client say, also when something is missing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .conftest import Stage
from .fleet import ROOT, until
from .scene import Scene
from .tables import PostgresTable, SqliteTable

SENT, BAD = 600, 30


def run(scene: Scene, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the front door with the environment of the scene."""
    env = {
        **os.environ,
        **scene.env,
        "COUTURIER_HOME": str(scene.directory / "home"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "couturier", *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def audited(scene: Scene) -> tuple[int, dict[str, Any]]:
    """Return exit code and figures of an audit."""
    done = run(scene, "audit", "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest) -> str:
    """One for each database."""
    return str(request.param)


def test_the_audit_agrees(stage: Stage) -> None:
    """After a kill the books balance as an outsider counts; a row that somebody deletes is named."""
    with stage() as scene:
        victim = scene.fleet.start("--batch-size", "8")
        sent = run(scene, "client", "send", "--images", str(SENT), "--bad-ratio", str(BAD / SENT), "--json")
        assert sent.returncode == 0, sent.stderr
        assert scene.place.unsettled() > 0, "all was done before the kill"
        victim.kill()
        scene.fleet.start()
        until(lambda: scene.place.unsettled() == 0, "nothing is unsettled", pause_s=0.2)
        assert scene.fleet.stop() == [0]
        code, found = audited(scene)
        with closing(sqlite3.connect(scene.directory / "home" / "ledger.db")) as ledger:
            ids = {message_id for (message_id,) in ledger.execute("SELECT message_id FROM ledger")}
        rows = {row.message_id for row in scene.table.rows()}
        letters = {letter.message_id for letter in scene.place.letters()}
        assert (len(rows), len(letters)) == (SENT - BAD, BAD)
        assert rows | letters == ids
        assert (code, found["published"], found["stored"], found["dead_lettered"]) == (
            0,
            SENT,
            SENT - BAD,
            BAD,
        )
        assert (found["lost"], found["in_flight"], found["duplicate_rows"]) == (0, 0, 0)
        gone = min(rows)
        forget(scene, gone)
        code, found = audited(scene)
        assert code == 1
        assert (found["lost"], found["lost_ids"]) == (1, [gone])


def forget(scene: Scene, message_id: str) -> None:
    """Delete a row behind everybody's back."""
    statement = f"DELETE FROM results WHERE message_id = '{message_id}'"
    if isinstance(scene.table, PostgresTable):
        scene.table.sql(statement)
    else:
        assert isinstance(scene.table, SqliteTable)
        with closing(sqlite3.connect(Path(scene.table.path), isolation_level=None)) as db:
            db.execute(statement)
