"""A server in a container of the Docker Engine that the environment names. Used by keepers only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .engines import HOST, STOP_LIMIT_S
from .errors import NotInstalledError

if TYPE_CHECKING:
    from docker.models.containers import Container

DOCKER_ANSWER_S = 3
PULL_LIMIT_S = 300


class ContainerEngine:
    """A container; its file system and its ports on 127.0.0.1 stay when it is stopped and started."""

    def __init__(
        self, image: str, env: dict[str, str], ports: dict[int, int], command: str | None = None
    ) -> None:
        """Find Docker and the image.

        Args:
            image: what to run.
            env: its environment.
            ports: container port to port on this machine.
            command: replaces the image's own.

        Raises:
            NotInstalledError: no Docker Engine answered in 3 s, or it has not and cannot pull the image.
        """
        find_image(image)
        # The keeper removes the container, also when the run is killed: Ryuk would be one image more to pull.
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        from testcontainers.core.container import DockerContainer

        self._container = DockerContainer(image, command=command).with_envs(**env)
        for inside, outside in ports.items():
            self._container.ports[f"{inside}/tcp"] = (HOST, outside)  # type: ignore[assignment]
        self._started = False

    @property
    def wrapped(self) -> Container:
        """The container of the Docker SDK."""
        return self._container.get_wrapped_container()

    def up(self) -> None:
        """Create it, or start it again."""
        if self._started:
            self.wrapped.start()
        else:
            self._container.start()
            self._started = True

    def down(self, kill: bool) -> None:
        """Stop or kill it; its file system stays."""
        if kill:
            self.wrapped.kill()
            self.wrapped.wait()
        else:
            self.wrapped.stop(timeout=int(STOP_LIMIT_S))

    def destroy(self) -> None:
        """Remove it with its volumes."""
        if self._started:
            self._container.stop()

    def failure(self) -> str | None:
        """Return the end of its log if it has ended, else None."""
        self.wrapped.reload()
        if self.wrapped.status not in {"exited", "dead"}:
            return None
        return str(self.wrapped.logs(tail=60).decode(errors="replace"))

    def pid(self) -> int | None:
        """Return None: its processes are Docker's."""
        return None

    def facts(self) -> dict[str, str | None]:
        """Return how it runs and its id."""
        return {"how": "container", "container": self._container.get_container_id()}


def find_image(image: str) -> None:
    """Have the image here.

    Raises:
        NotInstalledError: no Docker Engine answered in 3 s, or the image is neither there nor to be pulled.
    """
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=DOCKER_ANSWER_S)
        client.ping()
    except (DockerException, OSError) as error:
        raise NotInstalledError("no Docker Engine answers (start one)") from error
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            docker.from_env(timeout=PULL_LIMIT_S).images.pull(image)
        except (DockerException, OSError) as error:
            raise NotInstalledError(f"Docker cannot pull {image}") from error
    except (DockerException, OSError) as error:
        raise NotInstalledError("the Docker Engine does not answer in time") from error
