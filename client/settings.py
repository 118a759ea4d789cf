"""The only reader of the client's environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import settings
from broker.drivers.options import check_name
from broker.limits import days
from broker.settings import broker_url, home

from .results import Results, open_results, readable_url

if TYPE_CHECKING:
    from broker import Broker

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
    retention_days: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        validation_alias="COUTURIER_RETENTION",
        description="days for which a new topic keeps images, classified or not; the broker's own if unset",
    )
    letters_days: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        validation_alias="COUTURIER_DLQ_RETENTION",
        description="the same of a new dead-letter topic",
    )
    sink_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        validation_alias="SINK_URL",
        description="where the workers write results; several, separated by commas",
    )

    workers: str | None = Field(
        default=None,
        validation_alias="COUTURIER_WORKERS",
        description="workers elsewhere that `couturier status` asks: `host:port`, separated by commas",
    )

    catalogue_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        validation_alias="CATALOGUE_URL",
        description="the product catalogue of `couturier client send --source postgres`, `postgresql://...`",
    )
    catalogue_allow_hosts: str | None = Field(
        default=None,
        validation_alias="CATALOGUE_ALLOW_HOSTS",
        description="hosts that its images may come from, `cdn.example.com`, separated by commas; unset:"
        " none",
    )
    catalogue_allow_folders: str | None = Field(
        default=None,
        validation_alias="CATALOGUE_ALLOW_FOLDERS",
        description="folders that its `file:` images have to be in, separated as in `PATH`; unset: any image"
        " file",
    )

    async def ensure(self, broker: Broker) -> None:
        """Create topic, group and the place of its dead letters where they are missing.

        Raises:
            ValueError: the backend cannot keep messages for as long as is set.
        """
        from broker import OPERATORS, dead_letter_topic

        letters = dead_letter_topic(self.topic, self.group)
        await broker.ensure(self.topic, self.group, retention=days(self.retention_days))
        await broker.ensure(letters, OPERATORS, retention=days(self.letters_days))

    def results_url(self) -> str:
        """Return where results can be read; of several places the first that can.

        Raises:
            ValueError: ``SINK_URL`` names none.
        """
        return readable_url(self.sink_url)

    def open_results(self) -> Results:
        """Open the results for reading.

        Raises:
            ValueError: ``SINK_URL`` names nothing that can be read, or its login does not work.
            StoreError: there are no results, or something else.
        """
        return open_results(self.results_url())


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
