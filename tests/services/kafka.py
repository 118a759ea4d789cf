"""``kafka_service``: one Kafka node with a direct and a proxied listener, as tests see it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .engines import tied
from .errors import ServiceError
from .kafka_jars import java
from .service import Keeper, Run, Service

TOOL_LIMIT_S = 120.0
CONTAINER_RUNNER = "/opt/kafka/bin/kafka-run-class.sh"


class RemoteProxy:
    """The methods of ``KafkaProxy`` on the proxy in the keeper's process, for any thread and process."""

    def __init__(self, keeper: Keeper) -> None:
        """Take the keeper that runs the proxy."""
        self._keeper = keeper

    def cut(self, client_id_prefix: str) -> None:
        """Close these clients' connections and refuse new ones, as if their process had died."""
        self._keeper.call("through_proxy", "cut", client_id_prefix)

    def hold(self, client_id_prefix: str) -> None:
        """Forward nothing more of these clients, close nothing: a suspended process, a half-open link."""
        self._keeper.call("through_proxy", "hold", client_id_prefix)

    def heal(self, client_id_prefix: str) -> None:
        """Take back ``cut`` or ``hold`` of exactly this prefix."""
        self._keeper.call("through_proxy", "heal", client_id_prefix)

    def cut_all(self) -> None:
        """Cut everybody."""
        self._keeper.call("through_proxy", "cut_all")

    def heal_all(self) -> None:
        """Take back every rule."""
        self._keeper.call("through_proxy", "heal_all")

    def clients(self) -> list[str]:
        """Return the client id of each open connection, sorted; a client has several."""
        return list(self._keeper.call("through_proxy", "clients"))


class KafkaService(Service):
    """A Kafka broker.

    Attributes:
        bootstrap: ``host:port`` of the direct listener.
    """

    address_variable = "TEST_KAFKA_BOOTSTRAP"

    def __init__(self, how: str, bootstrap: str, keeper: Keeper | None = None) -> None:
        """Use ``KafkaService.start``."""
        super().__init__(how, keeper)
        self.bootstrap = bootstrap

    @classmethod
    def start(cls, run: Run, env: Mapping[str, str] | None = None) -> KafkaService:
        """Climb the ladder.

        Args:
            run: who shares the service.
            env: replaces the environment, for tests of the ladder.

        Raises:
            NotInstalledError: no rung holds; the text names what to install.
            ServiceError: it did not start; the text ends with its log.
        """
        address = (os.environ if env is None else env).get(cls.address_variable)
        if address:
            return cls("environment", address)
        keeper = Keeper.start("kafka", run, env)
        return cls(keeper.facts["how"], keeper.facts["bootstrap"], keeper)

    @property
    def proxied_bootstrap(self) -> str:
        """``host:port`` of the listener behind the proxy; its advertised address is the proxy's too."""
        return str(self.facts["proxied_bootstrap"])

    @property
    def proxy(self) -> RemoteProxy:
        """What cuts, holds and heals the connections that came by ``proxied_bootstrap``."""
        return RemoteProxy(self.keeper)

    def run_tool(self, class_name: str, *args: str, stdin: str | None = None) -> str:
        """Run one of Kafka's Java tools to its end and return what it printed.

        Args:
            class_name: such as ``kafka.admin.ConfigCommand``, or of ``org.apache.kafka.tools``
                ``ConsoleProducer``, ``consumer.ConsoleConsumer`` and ``TopicCommand``.
            args: its arguments, ``--bootstrap-server`` with ``service.bootstrap`` among them.
            stdin: what it reads.

        Raises:
            ServiceError: its exit status is not 0, or it took more than 120 s.
        """
        libs = self.facts["libs"]
        if libs is None:
            return _run_in_container(self.facts["container"], class_name, args, stdin or "")
        try:
            done = subprocess.run(
                tied(java(Path(libs), class_name, *args)),
                input=stdin or "",
                capture_output=True,
                text=True,
                timeout=TOOL_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceError(f"{class_name} took more than {TOOL_LIMIT_S:.0f} s") from error
        if done.returncode != 0:
            raise ServiceError(f"{class_name}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def _run_in_container(container_id: str, class_name: str, args: tuple[str, ...], stdin: str) -> str:
    """Run a tool beside the broker; the ports inside are those outside."""
    import docker

    client = docker.from_env(timeout=int(TOOL_LIMIT_S))
    try:
        container = client.containers.get(container_id)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("stdin")
            entry.size, entry.mode = len(stdin.encode()), 0o644
            tar.addfile(entry, io.BytesIO(stdin.encode()))
        container.put_archive("/tmp", archive.getvalue())
        command = ["sh", "-c", '"$0" "$@" </tmp/stdin', CONTAINER_RUNNER, class_name, *args]
        status, (out, err) = container.exec_run(command, demux=True)
        if status != 0:
            raise ServiceError(f"{class_name}: exit status {status}\n{out or b''!r}\n{err or b''!r}")
        return (out or b"").decode()
    finally:
        client.close()
