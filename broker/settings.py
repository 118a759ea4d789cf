"""The only reader of the broker's environment: which backend, where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .drivers.options import public_url

Backend = Literal["memory", "sqlite"]


class BrokerSettings(BaseSettings):
    """``BROKER_URL``, or ``BROKER_BACKEND`` and that backend's defaults.

    With neither, every process of this user shares one SQLite queue in the state directory.
    """

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    broker_url: str | None = Field(
        default=None, description="where the broker is, for example sqlite:///queue.db"
    )
    broker_backend: Backend | None = Field(default=None, description="which backend, with its default place")
    couturier_home: Path | None = Field(default=None, description="state directory of the embedded default")


def home(environment: Mapping[str, str] | None = None) -> Path:
    """Return the state directory: ``COUTURIER_HOME``, else the user's own.

    Source: XDG Base Directory Specification 0.8, ``XDG_STATE_HOME``.
    """
    env = os.environ if environment is None else environment
    if env.get("COUTURIER_HOME"):
        return Path(env["COUTURIER_HOME"]).expanduser()
    base = Path(env["XDG_STATE_HOME"]) if env.get("XDG_STATE_HOME") else Path.home() / ".local" / "state"
    return base / "couturier"


def broker_url() -> str:
    """Return the URL that the environment names.

    Raises:
        ValueError: a variable has a value that does not work, or two contradict each other.
    """
    try:
        settings = BrokerSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        raise ValueError(f"{name}={first['input']!r} does not work: {first['msg']}") from None
    scheme = urlsplit(settings.broker_url).scheme if settings.broker_url else None
    if settings.broker_url and settings.broker_backend and scheme != settings.broker_backend:
        raise ValueError(
            f"BROKER_URL={public_url(settings.broker_url)!r} and BROKER_BACKEND={settings.broker_backend!r}"
            " contradict each other; unset one of them"
        )
    if settings.broker_url:
        return settings.broker_url
    if settings.broker_backend == "memory":
        return "memory://"
    return f"sqlite:///{quote(str(home().absolute() / 'queue.db'))}"
