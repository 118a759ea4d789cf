"""Google Cloud Pub/Sub, and its emulator.

A topic is a topic; a group is the subscription ``<topic>.<group>`` and private storage for what failed (see
``google_pubsub_wire``). Leases are ack deadlines that the portable layer renews. Order by key is not offered:
the service orders deliveries, and a copy that waits for its retry would have to hold up its successors.

What ``publish`` and ``forward`` return for, Google has stored; verdicts are durable when ``settle`` returns,
though without ``exactly_once`` the service takes an ack as best it can, and a lost one delivers again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ..clock import Clock, SystemClock
from ..errors import BrokerError, NotFound
from ..message import Capabilities, Message, Receipt
from .base import Order
from .google_pubsub_admin import PubsubAdmin
from .google_pubsub_leases import own_clock
from .google_pubsub_member import PubsubMember
from .google_pubsub_publish import Publisher, Record
from .google_pubsub_rpc import Rpc
from .google_pubsub_wire import (
    DELETED_TOPIC,
    MAX_BODY_BYTES,
    MAX_NAME_BYTES,
    MAX_OWN_ATTRIBUTES,
    MAX_VALUE_BYTES,
    Names,
    is_name,
    no_group,
    no_topic,
    to_store,
)
from .options import check_url, split_url, take_seconds

_DAY_S = 86_400.0
# What a topic may keep. Source: google.pubsub_v1.types.Topic, message_retention_duration.
_LEAST_RETENTION_S, _MOST_RETENTION_S = 600.0, 31 * _DAY_S
# Source: google.pubsub_v1.types.ModifyAckDeadlineRequest, ack_deadline_seconds.
_MOST_LEASE_S = 600.0


class PubsubDriver:
    """Connection to the topics of one project.

    Args:
        project: its id.
        emulator: ``host:port`` of the emulator; None for Google's service.
        lease: seconds after which an unsettled delivery of a dead member comes again; whole, 1 to 600.
        retention: seconds for which topics and groups that ``ensure`` makes keep messages: settled ones for
            later groups, and unsettled ones, which Pub/Sub forgets after that. 600 to 31 days.
        exactly_once: groups that ``ensure`` makes have their acks confirmed by the service.
        clock: shared by all members of a group, so it follows the wall clock; delays are measured by it.
        look_again: seconds after which a delayed message is compared with ``clock`` again, at the latest.
        lease_clock: by which this process knows how long it still holds a lease, seconds.

    Raises:
        ValueError: a value is outside its range.
    """

    def __init__(
        self,
        project: str,
        emulator: str | None = None,
        lease: float = 60.0,
        retention: float = 7 * _DAY_S,
        exactly_once: bool = False,
        clock: Clock | None = None,
        look_again: float = _MOST_LEASE_S,
        lease_clock: Callable[[], float] = own_clock,
    ) -> None:
        if not 1 <= lease <= _MOST_LEASE_S or lease != int(lease):
            raise ValueError(f"lease={lease:g} must be a whole number of seconds from 1 to {_MOST_LEASE_S:g}")
        if not _LEAST_RETENTION_S <= retention <= _MOST_RETENTION_S:
            raise ValueError(
                f"retention={retention:g} must be {_LEAST_RETENTION_S:g} to {_MOST_RETENTION_S:g} seconds"
            )
        self.clock: Clock = clock or SystemClock(time.time)
        self.look_again = look_again
        self.lease_clock = lease_clock
        self.names = Names(project)
        self.address = f"pubsub://{project}" + (f" at {emulator}" if emulator else "")
        self.rpc = Rpc(emulator)
        self.publisher = Publisher(self.rpc)
        self.members: set[PubsubMember] = set()
        self.admin = PubsubAdmin(self, retention, exactly_once)
        self.capabilities = Capabilities(
            backend="pubsub",
            shared=True,
            durable=emulator is None,  # the emulator forgets everything when it stops
            history=True,
            counts=False,
            order=frozenset({"none"}),
            lease=float(lease),
            # A copy that waits must still be kept when its delay ends, and for some time after.
            max_delay=max(retention / 2, retention - _DAY_S),
            max_message_bytes=MAX_BODY_BYTES,
            max_attributes=MAX_OWN_ATTRIBUTES,
            max_attribute_bytes=MAX_VALUE_BYTES,
            max_attribute_name_bytes=MAX_NAME_BYTES,
            retention=(_LEAST_RETENTION_S, _MOST_RETENTION_S),
        )

    async def open(self) -> None:
        self.publisher = Publisher(self.rpc)
        await self.rpc.open(self.names.project)

    async def aclose(self) -> None:
        for member in tuple(self.members):
            await member.aclose()
        self.rpc.close()

    async def send(self, topic: str, messages: Sequence[Message]) -> list[Receipt | BrokerError]:
        if not is_name(topic):
            raise NotFound(no_topic(topic))
        problems: dict[int, BrokerError] = {}
        records: list[Record] = []
        for index, message in enumerate(messages):
            attributes = to_store(message)
            if isinstance(attributes, BrokerError):
                problems[index] = attributes
            else:
                records.append((message.data, attributes, message.key or ""))
        stored = await self.publisher.store(
            self.names.topic(topic), records, f"publishing to topic {topic!r}", no_topic(topic)
        )
        missing = [each for each in stored if isinstance(each, NotFound)]
        if missing and len(missing) == len(stored):
            raise missing[0]
        rest = iter(stored)
        answers = [problems.get(index) or next(rest) for index in range(len(messages))]
        return [
            answer if isinstance(answer, BrokerError) else Receipt(message.id, topic, answer)
            for message, answer in zip(messages, answers, strict=True)
        ]

    async def subscribe(self, topic: str, group: str, order: Order) -> PubsubMember:
        await self.check_group(topic, group)
        member = PubsubMember(self, topic, group)
        self.members.add(member)
        return member

    async def check_group(self, topic: str, group: str) -> None:
        """Return if ``ensure`` has made a group.

        Raises:
            NotFound: it has not, or something of it is gone.
            BrokerError: its subscription belongs to another topic.
        """
        missing = no_group(topic, group)
        if not is_name(topic):
            raise NotFound(missing)
        for path, belongs_to in (
            (self.names.subscription(topic, group), self.names.topic(topic)),
            (self.names.retry_subscription(topic, group), self.names.retry_topic(topic, group)),
        ):
            found = await self.admin.subscription(path, missing)
            if found.topic == DELETED_TOPIC:
                raise NotFound(missing)
            if found.topic != belongs_to:
                raise BrokerError(f"{path} is a subscription to {found.topic}, not to {belongs_to}")


def from_url(url: str, options: Mapping[str, str]) -> PubsubDriver:
    """Open ``pubsub://project``.

    Options: ``lease`` (60) and ``retention`` (604800), seconds, and ``exactly_once``, true or false. Where
    the emulator is, and which credentials to use, the environment says.

    Raises:
        ValueError: a value does not work; no project.
    """
    from ..settings import pubsub_emulator_host

    _, project, rest = split_url(check_url(url))
    if not project:
        raise ValueError(
            "write pubsub://PROJECT, or set GOOGLE_CLOUD_PROJECT and BROKER_BACKEND=pubsub without a URL"
        )
    if rest.partition("?")[0].strip("/"):
        raise ValueError("a project is all there is to name: write pubsub://PROJECT")
    given = dict(options)
    exactly_once = given.pop("exactly_once", "false").lower()
    if exactly_once not in ("true", "false"):
        raise ValueError(f"option exactly_once={exactly_once!r} must be true or false")
    seconds = take_seconds(given, {"lease": 60.0, "retention": 7 * _DAY_S})
    return PubsubDriver(
        project,
        pubsub_emulator_host(),
        seconds["lease"],
        seconds["retention"],
        exactly_once == "true",
    )
