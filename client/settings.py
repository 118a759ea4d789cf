"""The only reader of the client's environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import settings
from broker.drivers.options import check_name
from broker.settings import broker_url, home

from .results import default_url, sqlite_path

Name = Annotated[str, AfterValidator(check_name)]


class ClientSettings(BaseSettings):
    """``COUTURIER_TOPIC``, ``COUTURIER_GROUP``, ``COUTURIER_CREATE`` and ``SINK_URL``."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True, env_ignore_empty=True)

    topic: Name = Field(default="images", validation_alias="COUTURIER_TOPIC", description="where images go")
    group: Name = Field(
        default="classifiers", validation_alias="COUTURIER_GROUP", description="the workers' group"
    )
    create: bool = Field(
        default=True, validation_alias="COUTURIER_CREATE", description="create a missing topic and group"
    )
    sink_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        validation_alias="SINK_URL",
        description="where the workers write results",
    )

    def results_path(self) -> Path:
        """Return the results file.

        Raises:
            ValueError: ``SINK_URL`` names no SQLite file.
        """
        return sqlite_path(self.sink_url or default_url())


def load(**overrides: Any) -> ClientSettings:
    """Return the settings of this process; an override that is None leaves the variable its say.

    Raises:
        ValueError: variables have values that do not work; the text names all of them.
    """
    return settings.read(ClientSettings, **overrides)


def shared_broker_url() -> str:
    """Return the broker that workers in other processes can share.

    Raises:
        ValueError: the environment names none, or one that lives in a single process.
    """
    url = broker_url()
    if url.startswith("memory:"):
        name = "BROKER_URL" if os.environ.get("BROKER_URL") else "BROKER_BACKEND"
        raise ValueError(
            f"{name}={os.environ.get(name)!r} lives inside one process, and no worker would see it;"
            " use sqlite:///queue.db, or unset it"
        )
    return url


def embedded_note(results: bool = True) -> str | None:
    """Return one line about the files of the state directory that stand in for what is not configured.

    Args:
        results: the results are of interest, too.
    """
    parts = []
    if not (os.environ.get("BROKER_URL") or os.environ.get("BROKER_BACKEND")):
        parts.append(("BROKER_URL", "queue.db"))
    if results and not os.environ.get("SINK_URL"):
        parts.append(("SINK_URL", "results.db"))
    if not parts:
        return None
    unset = " and ".join(name for name, _ in parts)
    return f"{unset} not set: using {' and '.join(file for _, file in parts)} in {home()}"
