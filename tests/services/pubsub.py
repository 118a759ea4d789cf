"""``pubsub_service``: Google's Pub/Sub emulator, as tests see it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .service import Keeper, Run, Service


class PubSubService(Service):
    """The emulator. It keeps everything in memory: after ``restart`` or ``outage`` it is empty.

    Attributes:
        host: ``host:port``, as ``PUBSUB_EMULATOR_HOST`` wants it.
    """

    address_variable = "TEST_PUBSUB_EMULATOR_HOST"

    def __init__(self, how: str, host: str, keeper: Keeper | None = None) -> None:
        """Use ``PubSubService.start``."""
        super().__init__(how, keeper)
        self.host = host

    @classmethod
    def start(cls, run: Run, env: Mapping[str, str] | None = None) -> PubSubService:
        """Climb the ladder; arguments and errors as in ``KafkaService.start``."""
        address = (os.environ if env is None else env).get(cls.address_variable)
        if address:
            return cls("environment", address)
        keeper = Keeper.start("pubsub", run, env)
        return cls(keeper.facts["how"], keeper.facts["host"], keeper)
