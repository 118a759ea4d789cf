"""What a keeper starts for ``postgres_service``: a PostgreSQL server that trusts this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
from functools import partial
from pathlib import Path

from .containers import ContainerEngine
from .engines import HOST, Engine, ProcessEngine, Server, as_user, climb, free_ports
from .errors import NotInstalledError, ServiceError

IMAGE = "postgres:17"
CONTAINER_PORT = 5432
SUPERUSER = "postgres"
DEBIAN = Path("/usr/lib/postgresql")
PROTOCOL_3 = 196_608


def open_server(home: Path) -> Server:
    """Start PostgreSQL in a container or from this machine's binaries.

    Raises:
        NotInstalledError: neither is possible.
        ServiceError: it did not start.
    """
    return climb([_in_container, partial(_native, home)])


def _server(engine: Engine, port: int, psql: Path | None) -> Server:
    url = f"postgresql://{SUPERUSER}@{HOST}:{port}/{SUPERUSER}"
    return Server(engine, partial(_serves, port), {"url": url, "psql": psql and str(psql)})


def _in_container() -> Server:
    (port,) = free_ports(1)
    env = {"POSTGRES_HOST_AUTH_METHOD": "trust"}
    return _server(ContainerEngine(IMAGE, env, {CONTAINER_PORT: port}), port, psql=None)


def _native(home: Path) -> Server:
    binaries = find_binaries()
    user = None if os.getuid() else _unprivileged()
    data = home / "data"
    data.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(data, user)
    done = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        cwd=data,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **as_user(user),
    )
    if done.returncode != 0:
        raise ServiceError(f"initdb failed:\n{done.stdout}{done.stderr}")
    (port,) = free_ports(1)
    # No fsync: tests kill processes, not machines.
    settings = [f"--listen_addresses={HOST}", f"--port={port}", "--unix_socket_directories=", "--fsync=off"]
    command: list[str | Path] = [binaries / "postgres", "-D", data, *settings]
    # SIGINT is "fast shutdown": SIGTERM would wait for clients to leave.
    engine = ProcessEngine(command, home / "server.log", stop_with=signal.SIGINT, user=user)
    return _server(engine, port, binaries / "psql")


def find_binaries() -> Path:
    """Return the directory of ``initdb`` and ``postgres``: of ``pg_config``, else Debian's newest.

    Raises:
        NotInstalledError: there is none.
    """
    found = []
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        done = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, timeout=10, check=False
        )
        found.append(Path(done.stdout.strip()))
    installed = DEBIAN.glob("*/bin")
    found += sorted(installed, key=lambda path: path.parent.name.zfill(4), reverse=True)
    for path in found:
        if (path / "initdb").is_file() and (path / "postgres").is_file():
            return path
    raise NotInstalledError("PostgreSQL's server is not installed (Debian: postgresql)")


def _unprivileged() -> str:
    """Return whom to run the server as, since it refuses root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise NotInstalledError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _serves(port: int) -> bool:
    """Tell whether a session is granted: answer "R" with code 0 to a startup message."""
    words = b"user\0" + SUPERUSER.encode() + b"\0database\0" + SUPERUSER.encode() + b"\0\0"
    hello = struct.pack("!ii", 8 + len(words), PROTOCOL_3) + words
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(hello)
            return connection.recv(9) == b"R" + struct.pack("!ii", 8, 0)
    except OSError:
        return False
