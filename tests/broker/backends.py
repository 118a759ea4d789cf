"""Every run of the suite, and the page that says so; run this file to write it anew.

A new run is one more entry in ``RUNS``, with the harness of its own file.
"""

from __future__ import annotations

from pathlib import Path

from blocking_face import BlockingHarness
from test_google_pubsub import PubsubHarness
from test_google_pubsub_fake import ExactlyOnceHarness, FakeHarness
from test_kafka import KafkaHarness
from test_memory import MemoryHarness
from test_mock_kafka import MockHarness
from test_sqlite import SqliteHarness

from broker.conformance import Harness
from broker.conformance.table import capability_table, check_table, item_table, summary
from broker.drivers.google_pubsub import PubsubDriver
from broker.drivers.kafka import KafkaDriver
from broker.drivers.memory import MemoryDriver, MemoryStore
from broker.drivers.sqlite import SqliteDriver

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backends.md"

RUNS: dict[str, type[Harness]] = {
    "memory": MemoryHarness,
    "sqlite": SqliteHarness,
    "kafka": KafkaHarness,
    "mock": MockHarness,
    "emulator": PubsubHarness,
    "fake": FakeHarness,
    "once": ExactlyOnceHarness,
    "blocking": BlockingHarness,
}
_MEANING = {
    "memory": "the memory backend, clocks moved by hand (`tests/broker/test_memory.py`)",
    "sqlite": "the SQLite backend on a real file, clocks moved by hand (`test_sqlite.py`)",
    "kafka": "the Kafka backend on Apache Kafka 4.3 itself, one node (`test_kafka.py`)",
    "mock": "the Kafka backend on the mock cluster inside librdkafka, where there is no Java; where"
    " a member dies a check waits for a session of 45 s there, and runs with `-m campaign`"
    " (`test_mock_kafka.py`)",
    "emulator": "the Pub/Sub backend on Google's emulator (`test_google_pubsub.py`)",
    "fake": "the Pub/Sub backend, over gRPC, on a service inside the test process that knows attempts, leases"
    " and restarts (`test_google_pubsub_fake.py`)",
    "once": "the same with exactly-once subscriptions",
    "blocking": "`connect_blocking` over the memory backend, every call from a thread of its own"
    " (`test_blocking.py`)",
}

_TEMPLATE = """\
# What each backend does, and how we know

One suite, `broker.conformance`, is the definition of the contract. This page is written from what the runs of
the suite declare, by `uv run --all-extras python tests/broker/backends.py`; a test fails when it is out of
date, and another one pins every declaration. ✓ means that the check runs in the tests of this repository, and
that they fail if it does. A number is the reason, below, why a check cannot pass there. Declarations hold in
both directions: one that contradicts the backend's `capabilities` fails, and `pytest --conformance-verify`
runs what is declared impossible and fails where it passes.

## The runs

{runs}

{summary}

**Google Pub/Sub itself.** `TEST_PUBSUB_PROJECT` names a project to run the suite against the real service,
with credentials for it. This has not been done yet: no column on this page is such a run, and nothing that
stands here about Pub/Sub was seen on the service.

## Capabilities

As the backends come, without options. Asking for more fails at start, never silently.

{capabilities}

## The 48 items

What a suite for message brokers must check. Items 1 to 29 are in the suites of Go CDK, Watermill or Dapr;
items 30 to 48 are in none of the three.

{items}

## Every check

{checks}
"""


def page() -> str:
    """Return what ``docs/backends.md`` must say."""
    backends = {
        "memory": MemoryDriver(MemoryStore()),
        "sqlite": SqliteDriver(Path("queue.db")),
        "kafka": KafkaDriver("localhost:9092"),
        "pubsub": PubsubDriver("project"),
    }
    return _TEMPLATE.format(
        runs="\n".join(f"- **{name}**: {_MEANING[name]}." for name in RUNS),
        summary=summary(RUNS),
        capabilities=capability_table({name: each.capabilities for name, each in backends.items()}),
        items=item_table(),
        checks=check_table(RUNS),
    )


if __name__ == "__main__":
    PAGE.write_text(page())
