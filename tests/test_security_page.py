"""What ``docs/security.md`` says is so: its tests exist, its commands are accepted, its grants are enough."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from client.results import postgres
from client.schema import ResultRow
from tests.services import PostgresService, ServiceError
from worker.sinks.postgres import PostgresSink

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
ROWS = [line for line in PAGE.partition("## The checklist")[2].splitlines() if line.startswith("| ")][1:]


def test_every_line_of_the_checklist_has_a_test_or_a_reason() -> None:
    """Three cells, none empty but in the headings of its parts."""
    assert len(ROWS) > 50
    for row in ROWS:
        cells = [each.strip() for each in row.strip("|").split(" | ")]
        if cells[0].startswith("**") and cells[0].endswith("**"):
            continue
        assert len(cells) == 3, row
        assert all(cells), row


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_is_there(file: str, name: str) -> None:
    """Under that name, in a file that pytest collects."""
    assert re.fullmatch(r"test_\w+\.py", Path(file).name)
    found = {
        each.name
        for each in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert name in found


def test_every_path_to_a_test_names_one() -> None:
    """No file stands for whatever it may hold."""
    assert len(re.findall(r"`tests/", PAGE)) == len(re.findall(r"`tests/[\w/]+\.py::test_\w+`", PAGE))


def test_the_list_of_parts_is_written_by_the_command_of_the_page(tmp_path: Path) -> None:
    """CycloneDX from the lock file alone, without a network; the requirements of the audit, too."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    for line in re.findall(r"^(uv export .*?)(?: +#.*)?$", PAGE, re.MULTILINE):
        words = line.split()
        words[0], words[-1] = uv, str(tmp_path / words[-1])
        subprocess.run([*words, "--offline", "-q"], cwd=ROOT, check=True, capture_output=True, timeout=120)
    bill, needed = (tmp_path / "sbom.json").read_text(), (tmp_path / "requirements.txt").read_text()
    for name in ("confluent-kafka", "pillow", "onnxruntime", "psycopg"):
        assert f'"pkg:pypi/{name}@' in bill
        assert re.search(rf"^{name}==.*(\\\n +--hash=sha256:\w+ ?)+", needed, re.MULTILINE)


def row() -> ResultRow:
    """What a worker writes of an image."""
    said = {
        "message_id": "a",
        "status": "ok",
        "label": "Coat",
        "tags": "[]",
        "source": "/test",
        "worker": "w",
    }
    numbers = {"attempt": 1, "queue_s": 0.1, "process_s": 0.1, "latency_s": 0.2}
    nothing = ResultRow._make([None] * len(ResultRow._fields))
    return nothing._replace(**said, **numbers, created_at="2026-01-02T03:04:05+00:00")


@pytest.mark.anyio
async def test_the_grants_of_the_page_are_enough_and_no_more(
    postgres_service: PostgresService,
) -> None:
    """A worker writes with them; it can neither change rows, nor remove them, nor make or drop a table."""
    url, role = postgres_service.new_database(), f"worker_{uuid.uuid4().hex[:8]}"
    (grants,) = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    postgres_service.sql(postgres.ddl(), url)
    postgres_service.sql(f"CREATE ROLE {role} LOGIN; {grants.replace('TO couturier', f'TO {role}')}", url)
    parts = urlsplit(url)
    own = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    sink = PostgresSink(own)
    await sink.open()
    try:
        assert (await sink.write([row()])).new == 1
    finally:
        await sink.aclose()
    for more in (
        "UPDATE results SET label = 'x'",
        "DELETE FROM results",
        "DROP TABLE results",
        "CREATE TABLE mine (x int)",
    ):
        with pytest.raises(ServiceError, match=r"permission denied|must be owner"):
            postgres_service.sql(more, own)
    postgres_service.sql(f"DROP OWNED BY {role}; DROP ROLE {role}", url)
