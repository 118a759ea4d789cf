"""What ``couturier doctor`` asks of the broker: there, allowed in, set up, large enough, and in time?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from broker import Broker, BrokerError, Delivery, Message, PermissionDenied, TopicInfo, connect
from broker.drivers.options import public_url
from broker.settings import PubsubSettings, claim_check, kafka_client_config, read

if TYPE_CHECKING:
    from .settings import WorkerSettings

# Longer than any driver takes to say why it cannot connect.
_CONNECT_S = 20.0
_PROBE_S = 30.0
_PROBE_TOPIC, _PROBE_GROUP = "couturier-doctor", "doctor"
# Delays and leases are measured by wall clocks; a worker that is off by this much notices.
_SKEW_S = 1.0
_LOG_APPEND_TIME = 2
_NEXT = {
    "kafka": "start Kafka, or correct BROKER_URL or KAFKA_BOOTSTRAP_SERVERS; then `couturier broker ping`",
    "pubsub": "start the emulator (`gcloud beta emulators pubsub start`), or correct PUBSUB_EMULATOR_HOST, or"
    " unset it and log in; then `couturier broker ping`",
    "sqlite": "name a file that can be written in BROKER_URL, or unset it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``doctor`` looked at.

    Attributes:
        what: its name.
        state: ``ok``; ``warning``, it works and yet; ``missing``, something optional; ``skipped``, not looked
            at; or ``failed``.
        detail: what was found.
        next: what to do, where there is something.
    """

    what: str
    state: str
    detail: str
    next: str = ""


async def examine_broker(settings: WorkerSettings, workers: int, probe: bool) -> list[Finding]:
    """Look at the broker that the environment names.

    Args:
        settings: topic and group that are expected there.
        workers: how many are to share the work.
        probe: send a message through a topic of our own, which is made.
    """
    try:
        broker = connect()
    except ValueError as error:
        return [Finding("broker", "failed", str(error), "`couturier config show` lists what is set")]
    backend = broker.capabilities.backend
    found: list[Finding] = []
    try:
        start = perf_counter()
        async with asyncio.timeout(_CONNECT_S) as limit, broker:
            found.append(await _reached(broker, perf_counter() - start))
            topics = await broker.topics()
            limit.reschedule(None)  # the broker answers; a probe takes as long as it takes
            found += [*_credentials(backend), _topic(topics, settings, workers), _limits(broker)]
            if probe and broker.capabilities.shared:
                found += await _probe(broker)
            elif backend in ("kafka", "pubsub"):
                found.append(Finding("clock", "skipped", "not compared", "`couturier doctor --probe` does"))
    except PermissionDenied as error:
        found.append(Finding("credentials", "failed", str(error), "`couturier config show` lists the login"))
    except (BrokerError, ImportError, TimeoutError) as error:
        text = str(error) or f"no answer from {broker.address} within {_CONNECT_S:g} s"
        found.append(Finding("topics" if found else "broker", "failed", text, _NEXT.get(backend, "")))
    except ValueError as error:
        found.append(Finding("broker", "failed", str(error), "`couturier config show` lists what is set"))
    return found


async def _reached(broker: Broker, connect_s: float) -> Finding:
    start = perf_counter()
    facts = await broker.describe()
    answer_s = perf_counter() - start
    shown = ", ".join(f"{name} {value}" for name, value in facts.items())
    detail = (
        f"{broker.capabilities.backend} at {broker.address}: connected in {connect_s * 1000:.0f} ms,"
        f" answers in {answer_s * 1000:.0f} ms; {shown}"
    )
    if not broker.capabilities.durable:
        return Finding("broker", "warning", f"{detail}; for tests: it forgets everything when it stops")
    return Finding("broker", "ok", detail)


def _credentials(backend: str) -> list[Finding]:
    if backend == "kafka":
        config = kafka_client_config()
        protocol = config.get("security.protocol", "PLAINTEXT")
        user = config.get("sasl.username")
        who = f" as {user}" if user else ""
        if mechanism := config.get("sasl.mechanism"):
            return [Finding("credentials", "ok", f"{protocol}, {mechanism}{who}")]
        return [Finding("credentials", "ok", f"{protocol}: no login is asked for")]
    if backend == "pubsub":
        settings = read(PubsubSettings)
        if settings.pubsub_emulator_host:
            return [Finding("credentials", "ok", "the emulator asks for none")]
        file = settings.google_application_credentials
        return [Finding("credentials", "ok", f"accepted: {file or 'application-default credentials'}")]
    return []


def _topic(topics: Sequence[TopicInfo], settings: WorkerSettings, workers: int) -> Finding:
    name, group = settings.topic, settings.group
    make = f"`couturier topics ensure {name} --group {group}`"
    found = next((each for each in topics if each.name == name), None)
    if found is None or group not in found.groups:
        lacking = f"no topic {name!r}" if found is None else f"topic {name!r} has no group {group!r}"
        if settings.create:
            return Finding("topic", "missing", f"{lacking} yet; the first worker or sender makes it", make)
        return Finding("topic", "failed", f"{lacking}, and COUTURIER_CREATE=false", make)
    if found.partitions is None:
        return Finding("topic", "ok", f"{name!r} with group {group!r}; workers share it without partitions")
    detail = f"{name!r} with group {group!r}: {found.partitions} partition(s) for {workers} worker(s)"
    if found.partitions < workers:
        return Finding(
            "topic",
            "warning",
            f"{detail}: {workers - found.partitions} would get nothing",
            f"run at most {found.partitions}, or add partitions: `kafka-topics.sh --alter --topic {name}"
            f" --partitions {workers}`",
        )
    return Finding("topic", "ok", detail)


def _limits(broker: Broker) -> Finding:
    can = broker.capabilities
    detail = (
        f"bodies to {can.max_message_bytes:,} bytes, {can.max_attributes} attributes of"
        f" {can.max_attribute_bytes:,} bytes, delays to {can.max_delay:,.0f} s"
    )
    large = claim_check()
    if large is None:
        return Finding("limits", "ok", f"{detail}; larger bodies need BROKER_CLAIM_CHECK_URL")
    return Finding("limits", "ok", f"{detail}; larger bodies go to {public_url(large[0])}")


async def _probe(broker: Broker) -> list[Finding]:
    """Send one message through a topic of our own, and compare clocks where the broker tells the time."""
    try:
        async with asyncio.timeout(_PROBE_S):
            await broker.ensure(_PROBE_TOPIC, _PROBE_GROUP, partitions=1)
            async with broker.subscribe(_PROBE_TOPIC, group=_PROBE_GROUP) as subscription:
                probe, sent = Message(data=b"probe"), time.time()
                await broker.publish(_PROBE_TOPIC, [probe])
                stored = time.time()
                async for delivery in subscription:
                    await subscription.ack([delivery])
                    if delivery.message.id == probe.id:
                        break
                took_s = time.time() - sent
    except (BrokerError, TimeoutError) as error:
        text = str(error) or f"the message did not come back within {_PROBE_S:g} s"
        return [Finding("round trip", "failed", text, "may this login create, write and read topics?")]
    done = f"published, received and acknowledged in {took_s * 1000:.0f} ms, topic {_PROBE_TOPIC!r}"
    return [Finding("round trip", "ok", done), _clock(broker, delivery, sent, stored)]


def _clock(broker: Broker, delivery: Delivery, sent: float, stored: float) -> Finding:
    """Compare the broker's time of storing with ours before and after, Unix seconds."""
    theirs = _stored_at(delivery)
    if broker.capabilities.backend == "sqlite":
        return Finding("clock", "ok", "one machine, one clock")
    if theirs is None:
        return Finding("clock", "skipped", "not comparable: the topic keeps the sender's time")
    skew = max(sent - theirs, theirs - stored, 0.0)
    if skew > _SKEW_S:
        return Finding(
            "clock",
            "warning",
            f"{skew:.1f} s apart from the broker's; delays of failed messages are off by as much",
            "keep this machine's clock with NTP (`timedatectl status`)",
        )
    return Finding("clock", "ok", f"within {max(skew, stored - sent):.2f} s of the broker's")


def _stored_at(delivery: Delivery) -> float | None:
    """Return when the broker stored it by its own clock, Unix seconds.

    Pub/Sub always says; Kafka on topics with ``message.timestamp.type=LogAppendTime`` only.
    """
    published_ns = getattr(delivery.receipt, "origin_ns", None)
    if published_ns is not None:
        return float(published_ns) / 1e9
    native = getattr(delivery.receipt, "native", None)
    if native is None:
        return None
    kind, milliseconds = native.timestamp()
    return float(milliseconds) / 1000 if kind == _LOG_APPEND_TIME else None
