"""The drawing is held by tests: who imports whom, and how large things may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"broker", "classifier", "client", "worker", "couturier"}
MAY_IMPORT = {
    "broker": set(),
    "classifier": set(),
    "client": {"broker", "classifier"},
    "worker": {"broker", "classifier", "client"},
}
# A library is imported by these files only, and inside a function where the note says "on use".
HOMES = {
    "sqlite3": {
        "broker/drivers/sqlite_file.py",
        "broker/drivers/sqlite_admin.py",
        "client/store.py",
        "client/results/sqlite.py",
        "client/ledger.py",
    },
    "pydantic_settings": {
        "broker/settings.py",
        "client/settings.py",
        "client/gateway/settings.py",
        "worker/settings.py",
    },
    "prometheus_client": {"client/gateway/metrics.py", "worker/http.py", "worker/metrics.py"},
    "anyio": {"broker/blocking.py", "broker/conformance"},
    "confluent_kafka": {"broker/drivers/kafka"},
    "fastapi": {"client/gateway"},
    "fsspec": {"broker/claims.py"},
    "google": {"broker/drivers/google_pubsub"},
    "grpc": {"broker/drivers/google_pubsub"},
    "opentelemetry": {"broker/tracing.py"},
    "psycopg": {"client/results/postgres", "client/sources/catalogue.py", "worker/sinks/postgres"},
    "python_multipart": {"client/gateway/bodies.py"},
    "starlette": {"client/gateway"},
    "uvicorn": {"client/gateway/server.py"},
    "yaml": {"client/asyncapi.py"},
}
# What `client` may take from `classifier`: the mock source reads the validation images.
CLIENT_READS = {"client/sources/fashion_mnist.py"}
# What `worker` may take from `client`.
WORKER_READS = {"schema", "context", "results", "errors", "workers"}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 9


def sources() -> list[Path]:
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return sorted([*files, ROOT / "couturier.py"])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the absolute name of everything that a file imports from outside its package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    """A package imports only those below it, and its own parts relatively."""
    package = name_of(path).split("/")[0]
    if package == "couturier.py":
        return
    for name, _ in imports(path):
        top = name.split(".")[0]
        if top not in OURS:
            continue
        assert top in MAY_IMPORT[package], f"{name_of(path)} imports {name}"
        if package == "client" and top == "classifier":
            assert name_of(path) in CLIENT_READS, f"{name_of(path)} imports {name}"
        if package == "worker" and top == "client":
            assert name.split(".")[1] in WORKER_READS, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("library", HOMES)
def test_a_client_library_is_imported_in_its_own_files_only(library: str) -> None:
    """One file to change when a library changes."""
    for path in sources():
        for name, _ in imports(path):
            if name.split(".")[0] == library:
                homes = HOMES[library]
                assert any(name_of(path).startswith(home) for home in homes), f"{name_of(path)}: {name}"


def test_the_broker_needs_the_standard_library_alone() -> None:
    """``import broker`` works wherever Python does; a client library is imported on use, in its home."""
    import sys

    allowed = sys.stdlib_module_names | OURS | {"pydantic", "pydantic_settings", "anyio", "pytest"}
    allowed |= {"confluent_kafka", "fsspec", "google", "grpc", "opentelemetry"}
    for path in (ROOT / "broker").rglob("*.py"):
        for name, _ in imports(path):
            assert name.split(".")[0] in allowed, f"{name_of(path)}: {name}"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    """Budgets: see CONTRIBUTING."""
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{name_of(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
            assert lines <= MAX_FUNCTION_LINES, f"{name_of(path)}: {node.name} has {lines} lines"
            count = len(node.args.args) + len(node.args.kwonlyargs)
            assert count <= MAX_PARAMETERS, f"{name_of(path)}: {node.name} has {count} parameters"


def test_a_backend_implements_at_most_six_data_methods() -> None:
    """The seam stays narrow: send, receive, settle, extend, forward, flush."""
    from broker.drivers.base import Driver, SubscriptionDriver

    lifecycle = {"open", "aclose", "subscribe"}
    verbs = {name for each in (Driver, SubscriptionDriver) for name in vars(each) if name[0] != "_"}
    assert verbs - lifecycle - set(Driver.__annotations__) == {
        "extend",
        "flush",
        "forward",
        "receive",
        "send",
        "settle",
    }


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return (first.end_lineno or 0) - first.lineno + 1
    return 0
