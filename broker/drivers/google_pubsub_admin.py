"""Topics and groups on Pub/Sub: made, found, listed, counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..errors import BrokerError, NotFound
from ..message import Delivery, GroupStats, Lag, TopicInfo
from .base import Start
from .google_pubsub_errors import status_of
from .google_pubsub_look import LABEL, LOOK, Look
from .google_pubsub_rpc import request
from .google_pubsub_wire import RETRY, Names, delivery, is_name, short

if TYPE_CHECKING:
    from .google_pubsub import PubsubDriver

_TOPIC, _GROUP, _STORAGE = "topic", "group", "retry"
_EARLIEST = "earliest"
_START_LABEL = "couturier-start"
# Of a delivery for which no member has asked for a lease yet; the bounds are the service's.
_LEAST_DEADLINE_S, _MOST_DEADLINE_S = 10, 600
# What has just been made may not be found everywhere yet.
_VISIBLE_S = 10.0
_PAUSE_S = 0.05
_PAGE = 1000


class PubsubAdmin:
    """Makes and lists topics and groups.

    Args:
        driver: whose topics these are.
        retention: of what ``ensure`` makes, seconds.
        exactly_once: whether groups that ``ensure`` makes have their acks confirmed.
    """

    def __init__(self, driver: PubsubDriver, retention: float, exactly_once: bool) -> None:
        self._driver = driver
        self._rpc = driver.rpc
        self._names: Names = driver.names
        self._retention = retention
        self._exactly_once = exactly_once

    async def ensure(
        self, topic: str, group: str | None, partitions: int, start: Start, retention: float | None
    ) -> float | None:
        """Create what is missing.

        The retry subscription is made last: a group whose ``ensure`` was broken off does not exist yet, and
        the next ``ensure`` finishes it, from where the first one was told to start.

        Raises:
            ValueError: Pub/Sub takes no such name, or it would be taken for storage of this package.
        """
        for name in (topic, group):
            if name is not None and name.endswith(RETRY):
                raise ValueError(f"{name!r}: names that end in {RETRY!r} are kept for what failed in a group")
        if not is_name(topic):
            raise ValueError(f"topic {topic!r}: Pub/Sub wants at least three characters, at first not 'goog'")
        kept = await self._ensure_topic(self._names.topic(topic), _TOPIC, retention or self._retention)
        if group is not None:
            await self._ensure_group(topic, group, start, retention or self._retention)
        return None if kept in (None, retention) else kept

    async def _ensure_group(self, topic: str, group: str, start: Start, retention: float) -> None:
        retry = self._names.retry_subscription(topic, group)
        main = await self._find("GetSubscription", subscription=self._names.subscription(topic, group))
        if main is None or await self._find("GetSubscription", subscription=retry) is None:
            main = await self._ensure_subscription(
                self._names.subscription(topic, group), self._names.topic(topic), _GROUP, retention, start
            )
            if main.labels.get(LABEL) == _GROUP:
                await self._seek(main.name, main.labels.get(_START_LABEL) == _EARLIEST)
            # What waits for its retry must outlast its delay, however soon the topic forgets.
            longest = max(retention, self._retention)
            await self._ensure_topic(self._names.retry_topic(topic, group), _STORAGE, longest)
            await self._ensure_subscription(retry, self._names.retry_topic(topic, group), _STORAGE, longest)
        await self._driver.check_group(topic, group)

    async def remove_group(self, topic: str, group: str) -> None:
        """Forget a group and what it had before it; its members end with ``NotFound``."""
        names = self._names
        # The subscription that ``topics`` lists goes last, so that what was broken off can be found.
        for method, path in (
            ("DeleteSubscription", names.retry_subscription(topic, group)),
            ("DeleteTopic", names.retry_topic(topic, group)),
            ("DeleteSubscription", names.subscription(topic, group)),
        ):
            field = "topic" if method == "DeleteTopic" else "subscription"
            with contextlib.suppress(NotFound):
                await self._rpc.call(method, request(method, **{field: path}), f"deleting {path}")

    async def stats(self, topic: str, group: str) -> GroupStats:
        """Count what a group has before it, by pulling a copy of all of it (see ``Look``).

        Raises:
            DeadlineExceeded: there is too much to be counted within a minute.
        """
        await self._driver.check_group(topic, group)
        now = self._driver.clock.now()
        held = {each for member in tuple(self._driver.members) for each in member.held_ids(topic, group)}
        seen: dict[tuple[bool, str], bool] = {}
        async with Look(self._driver, topic, group) as look:
            async for record in look.records():
                seen[record.retry, record.message_id] = record.due > now
        in_flight = len(held & seen.keys())
        delayed = sum(late for key, late in seen.items() if key not in held)
        return GroupStats(None, None, in_flight, delayed, ready=len(seen) - in_flight - delayed)

    async def topics(self) -> list[TopicInfo]:
        project = f"projects/{self._names.project}"
        listed = await self._list("ListTopics", "topics", project)
        names = [short(each.name) for each in listed if each.labels.get(LABEL) != _STORAGE]
        groups: dict[str, list[str]] = defaultdict(list)
        for each in await self._list("ListSubscriptions", "subscriptions", project):
            topic, name = short(each.topic), short(each.name)
            if each.labels.get(LABEL) != LOOK and name.startswith(f"{topic}."):
                groups[topic].append(name[len(topic) + 1 :])
        return [TopicInfo(name, None, tuple(sorted(groups.get(name, ())))) for name in sorted(names)]

    async def lag(self, topic: str, group: str) -> list[Lag]:
        """Say what a group has before it; Pub/Sub has no coordinates."""
        return [Lag(None, (await self.stats(topic, group)).unsettled)]

    async def describe(self) -> dict[str, str]:
        project = self._names.project
        asked = request("ListTopics", project=f"projects/{project}", page_size=1)
        await self._rpc.call("ListTopics", asked, "asking who is there", missing=f"no project {project!r}")
        return {
            "service": "Pub/Sub emulator" if self._rpc.emulator else "Google Cloud Pub/Sub",
            "endpoint": self._rpc.target,
            "project": project,
            "client": f"google-cloud-pubsub {version('google-cloud-pubsub')}, grpcio {version('grpcio')}",
        }

    async def browse(self, topic: str, group: str) -> AsyncIterator[Delivery]:
        """Show what a group has not settled, oldest first as far as ``Look`` can hold it in memory."""
        await self._driver.check_group(topic, group)
        async with Look(self._driver, topic, group) as look:
            async for record in look.oldest_first():
                yield delivery(record, self._names.project, topic)

    async def subscription(self, path: str, missing: str) -> Any:
        """Return what the service says of a subscription.

        Raises:
            NotFound: with the text ``missing``.
        """
        asked = request("GetSubscription", subscription=path)
        return await self._rpc.call("GetSubscription", asked, f"looking for {path}", tries=3, missing=missing)

    async def _find(self, method: str, **fields: str) -> Any:
        """Return a resource, or None."""
        try:
            return await self._rpc.call(method, request(method, **fields), f"looking for {fields}")
        except NotFound:
            return None

    async def _ensure_topic(self, path: str, kind: str, retention: float) -> float | None:
        """Create a topic; of one that was there return for how many seconds it keeps messages."""
        if (found := await self._find("GetTopic", topic=path)) is not None:
            return float(found.message_retention_duration.seconds) or None
        # The retry topic, too, retains: the emulator shows a snapshot only what the topic still has.
        asked = request(
            "CreateTopic",
            name=path,
            message_retention_duration={"seconds": int(retention)},
            labels={LABEL: kind},
        )
        await self._create("CreateTopic", asked)
        await self._await_visible("GetTopic", topic=path)
        return None

    async def _ensure_subscription(
        self, path: str, topic: str, kind: str, retention: float, start: str = ""
    ) -> Any:
        asked = request(
            "CreateSubscription",
            name=path,
            topic=topic,
            ack_deadline_seconds=min(
                max(int(self._driver.capabilities.lease), _LEAST_DEADLINE_S), _MOST_DEADLINE_S
            ),
            message_retention_duration={"seconds": int(retention)},
            enable_exactly_once_delivery=self._exactly_once,
            labels={LABEL: kind, **({_START_LABEL: start} if start else {})},
        )
        # Present and empty: it never expires. Left out, it would after 31 idle days.
        asked.expiration_policy.SetInParent()
        if await self._find("GetSubscription", subscription=path) is None:
            await self._create("CreateSubscription", asked)
        found = await self._await_visible("GetSubscription", subscription=path)
        if found.topic != topic:
            raise BrokerError(f"{path} exists as a subscription to {found.topic}, not to {topic}")
        return found

    async def _create(self, method: str, asked: Any) -> None:
        try:
            await self._rpc.call(method, asked, f"creating {asked.name}")
        except BrokerError as error:
            if error.__cause__ is None or status_of(error.__cause__) != "ALREADY_EXISTS":
                raise

    async def _await_visible(self, method: str, **fields: str) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _VISIBLE_S
        while (found := await self._find(method, **fields)) is None:
            if loop.time() > deadline:
                raise NotFound(f"{fields}: created, and not there after {_VISIBLE_S:g} s")
            await asyncio.sleep(_PAUSE_S)
        return found

    async def _seek(self, path: str, earliest: bool) -> None:
        """Put a new subscription at its start."""
        moment = 1.0
        if not earliest:
            # The service lets a new subscription begin at its end; the emulator shows it what is retained.
            if not self._rpc.emulator:
                return
            moment = time.time()
        asked = request("Seek", subscription=path, time=_timestamp(moment))
        await self._rpc.call("Seek", asked, f"seeking in {path}")

    async def _list(self, method: str, field: str, project: str) -> list[Any]:
        found: list[Any] = []
        token = ""
        while True:
            asked = request(method, project=project, page_size=_PAGE, page_token=token)
            page = await self._rpc.call(method, asked, "listing topics and groups")
            found += getattr(page, field)
            token = page.next_page_token
            if not token:
                return found


def _timestamp(seconds: float) -> dict[str, int]:
    return {"seconds": int(seconds), "nanos": int(seconds % 1 * 1e9)}
