"""What other teams import is pinned."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("broker", "classifier", "client", "worker")
CONTRACT = {
    "broker": "connect connect_blocking Message Delivery BrokerError Batching RetryPolicy Done Retry Reject"
    " Unavailable",
    "classifier": "Classifier InvalidImage evaluate export load train",
    "client": "Client",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_complete(package: str) -> None:
    """Every public name exists, and the list reads like an index."""
    module = importlib.import_module(package)

    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert list(module.__all__) == sorted(module.__all__, key=order)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", CONTRACT)
def test_the_names_of_the_contract_are_there(package: str) -> None:
    """Renaming one of these breaks other teams."""
    module = importlib.import_module(package)
    for name in CONTRACT[package].split():
        assert hasattr(module, name), name


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package: str) -> None:
    """Type checkers read our annotations."""
    assert (ROOT / package / "py.typed").exists()


def test_help_imports_nothing_heavy() -> None:
    """``couturier --help`` answers before anyone looks up."""
    program = (
        "import sys; sys.argv = ['couturier', '--help']\n"
        "import couturier\n"
        "try:\n    couturier.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'confluent_kafka', 'google.cloud', 'PIL', 'pydantic',"
        " 'matplotlib', 'sqlite3'}\n"
        "found = sorted(heavy & set(sys.modules))\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "worker", "client", "results", "dlq", "audit", "doctor", "train", "predict"):
        assert command in done.stdout


def test_the_version_is_printed() -> None:
    """For bug reports."""
    command = [sys.executable, "-m", "couturier", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("couturier 0.")
