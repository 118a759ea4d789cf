"""A member of a Kafka group in a process of its own, as ``remote_member``; with a bug planted, if wished."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from remote_member import GROUP, RemoteMember, _Commands, _say

ROOT = Path(__file__).resolve().parents[2]


class KafkaRemote(RemoteMember):
    """The parent's end.

    Args:
        url: of the broker.
        topic: to subscribe to; its group is ``remote_member.GROUP``.
        bug: of ``kafka_bugs``, or "".
    """

    def __init__(self, url: str, topic: str, bug: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url, topic, bug],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )


async def _serve(url: str, topic: str) -> None:
    from broker import connect

    loop = asyncio.get_running_loop()
    async with connect(url) as broker, broker.subscribe(topic, group=GROUP) as subscription:
        commands: Any = _Commands(broker, subscription)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            _say(await getattr(commands, asked.pop("command"))(**asked))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[3]:
        from kafka_bugs import plant

        plant(sys.argv[3])
    asyncio.run(_serve(sys.argv[1], sys.argv[2]))
