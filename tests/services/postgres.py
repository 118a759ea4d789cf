"""``postgres_service``: a PostgreSQL server, as tests see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from .errors import ServiceError
from .service import Keeper, Run, Service, give_up

QUERY_LIMIT_S = 60


class PostgresService(Service):
    """A PostgreSQL server.

    Attributes:
        url: ``postgresql://user@host:port/database`` of its first database.
    """

    address_variable = "TEST_POSTGRES_URL"

    def __init__(self, how: str, url: str, keeper: Keeper | None = None) -> None:
        """Use ``PostgresService.start``."""
        super().__init__(how, keeper)
        self.url = url

    @classmethod
    def start(cls, run: Run, env: Mapping[str, str] | None = None) -> PostgresService:
        """Climb the ladder; arguments and errors as in ``KafkaService.start``."""
        address = (os.environ if env is None else env).get(cls.address_variable)
        if address:
            return cls("environment", address)
        keeper = Keeper.start("postgres", run, env)
        return cls(keeper.facts["how"], keeper.facts["url"], keeper)

    def new_database(self) -> str:
        """Create an empty database and return its URL. It goes with the server; on a foreign one it stays."""
        name = f"test_{uuid.uuid4().hex[:16]}"
        self.sql(f"CREATE DATABASE {name}")
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def sql(self, statement: str, url: str | None = None) -> str:
        """Run SQL with ``psql`` and return what it prints: a line per row, fields between ``|``.

        Args:
            statement: one statement or several.
            url: the database, None for the first.

        Raises:
            ServiceError: PostgreSQL refused it.
        """
        arguments = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]
        if self.how == "container":
            return self._sql_in_container(arguments, url)
        psql = shutil.which("psql") if self._keeper is None else self.facts["psql"]
        if psql is None:
            give_up("psql is not installed (Debian: postgresql-client)")
        done = subprocess.run(
            [psql, *arguments, url or self.url],
            capture_output=True,
            text=True,
            timeout=QUERY_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(done.stderr)
        return done.stdout.removesuffix("\n")

    def _sql_in_container(self, arguments: list[str], url: str | None) -> str:
        import docker

        client = docker.from_env(timeout=QUERY_LIMIT_S)
        try:
            container = client.containers.get(self.facts["container"])
            database = urlsplit(url or self.url).path[1:]
            status, output = container.exec_run(
                ["psql", "-h", "127.0.0.1", "-U", "postgres", *arguments, database]
            )
        finally:
            client.close()
        if status != 0:
            raise ServiceError(output.decode())
        return str(output.decode().removesuffix("\n"))
