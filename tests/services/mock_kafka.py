"""``mock_kafka``: the mock cluster of librdkafka, inside this process, in milliseconds and without Java.

It creates topics on first use, with 4 partitions, and answers no CreateTopics. It keeps about 5 MB per
partition and drops the rest without a word, knows no aborted transactions, and is gone with its owner: good
for a driver's logic, no proof of durability or volume.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from .errors import ServiceError


class MockKafka:
    """A mock cluster.

    Attributes:
        bootstrap: ``host:port`` of its brokers, comma-separated.
    """

    partitions = 4

    def __init__(self, brokers: int = 1) -> None:
        """Start it.

        Args:
            brokers: how many.

        Raises:
            ServiceError: it does not answer in 10 s.
        """
        from confluent_kafka import KafkaException, Producer

        logger = logging.getLogger("tests.services.mock_kafka")
        config: dict[str, Any] = {"test.mock.num.brokers": brokers, "log_level": 0, "logger": logger}
        self._owner: Producer | None = Producer(config)
        try:
            found = self._owner.list_topics(timeout=10).brokers.values()
        except KafkaException as error:
            raise ServiceError("librdkafka's mock cluster does not answer") from error
        self.bootstrap = ",".join(sorted(f"{broker.host}:{broker.port}" for broker in found))

    def close(self) -> None:
        """End it: whoever is connected sees all brokers down."""
        self._owner = None

    def __enter__(self) -> MockKafka:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()
