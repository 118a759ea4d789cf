"""What a keeper starts for ``pubsub_service``: Google's Pub/Sub emulator."""

from __future__ import annotations

import http.client
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .containers import ContainerEngine
from .engines import HOST, Engine, ProcessEngine, Server, climb, free_ports
from .errors import NotInstalledError

IMAGE = "gcr.io/google.com/cloudsdktool/google-cloud-cli:emulators"
CONTAINER_PORT = 8085
PROGRAM = Path("platform/pubsub-emulator/bin/cloud-pubsub-emulator")


def open_server(home: Path) -> Server:
    """Start the emulator in a container or from the Google Cloud SDK.

    Raises:
        NotInstalledError: neither is possible.
        ServiceError: it did not start.
    """
    return climb([_in_container, partial(_native, home)])


def _server(engine: Engine, port: int) -> Server:
    return Server(engine, partial(_serves, port), {"host": f"{HOST}:{port}"})


def _in_container() -> Server:
    (port,) = free_ports(1)
    command = f"gcloud beta emulators pubsub start --host-port=0.0.0.0:{CONTAINER_PORT}"
    return _server(ContainerEngine(IMAGE, {}, {CONTAINER_PORT: port}, command), port)


def _native(home: Path) -> Server:
    program = find_emulator()
    (port,) = free_ports(1)
    engine = ProcessEngine([program, f"--host={HOST}", f"--port={port}"], home / "server.log")
    return _server(engine, port)


def find_emulator() -> Path:
    """Return the emulator's program.

    Raises:
        NotInstalledError: there is no SDK, no emulator in it, or no Java.
    """
    if shutil.which("java") is None:
        raise NotInstalledError("Java is not installed (Debian: default-jre-headless)")
    if shutil.which("gcloud") is None:
        raise NotInstalledError(
            "the Google Cloud SDK is not installed (google-cloud-cli, google-cloud-cli-pubsub-emulator)"
        )
    for root in _sdk_roots():
        if (root / PROGRAM).is_file():
            return root / PROGRAM
    raise NotInstalledError(
        "the Google Cloud SDK lacks its Pub/Sub emulator "
        "(apt: google-cloud-cli-pubsub-emulator, else `gcloud components install pubsub-emulator`)"
    )


def _sdk_roots() -> Iterator[Path]:
    """Yield where the SDK may be: first by its link, since asking it takes a second."""
    gcloud = shutil.which("gcloud") or "gcloud"
    yield Path(gcloud).resolve().parents[1]
    done = subprocess.run(
        [gcloud, "info", "--format=value(installation.sdk_root)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    yield Path(done.stdout.strip() or "/nonexistent")


def _serves(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
