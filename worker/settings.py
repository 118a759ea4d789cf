"""The only reader of the worker's environment."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import settings
from broker.drivers.options import check_name
from client.results import default_url

Engine = Literal["onnx", "onnx-int8", "torch"]
Name = Annotated[str, AfterValidator(check_name)]


class WorkerSettings(BaseSettings):
    """How one worker process runs. Every field has a variable; the queue is named by ``BROKER_URL``."""

    model_config = SettingsConfigDict(
        extra="ignore", populate_by_name=True, env_ignore_empty=True, protected_namespaces=()
    )

    topic: Name = Field(
        default="images", validation_alias="COUTURIER_TOPIC", description="where images come from"
    )
    group: Name = Field(
        default="classifiers", validation_alias="COUTURIER_GROUP", description="who shares the work"
    )
    create: bool = Field(
        default=True, validation_alias="COUTURIER_CREATE", description="create a missing topic and group"
    )
    sink_url: str = Field(
        default_factory=default_url,
        repr=False,  # it may hold a password
        validation_alias="SINK_URL",
        description="where results go",
    )
    model: Path | None = Field(
        default=None,
        validation_alias="COUTURIER_MODEL",
        description="a bundle's directory; the shipped one if unset",
    )
    engine: Engine = Field(
        default="onnx", validation_alias="COUTURIER_ENGINE", description="onnx, onnx-int8 or torch"
    )
    batch_size: int = Field(
        default=128, ge=1, le=4096, validation_alias="COUTURIER_BATCH_SIZE", description="most images at once"
    )
    max_wait_s: float = Field(
        default=0.02,
        ge=0,
        validation_alias="COUTURIER_MAX_WAIT",
        description="longest wait for company, seconds",
    )
    attempts: int = Field(
        default=5, ge=1, validation_alias="COUTURIER_ATTEMPTS", description="tries before the dead letter"
    )
    drain_timeout_s: float = Field(
        default=25.0, ge=0, validation_alias="COUTURIER_DRAIN_TIMEOUT", description="time to finish, seconds"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias="LOG_LEVEL", description="least severe line that is shown"
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", validation_alias="LOG_FORMAT", description="console on a terminal, else json"
    )

    @property
    def worker_id(self) -> str:
        """Names this process in every row that it writes."""
        return f"{socket.gethostname()}-{os.getpid()}"


def load(**overrides: Any) -> WorkerSettings:
    """Return the settings of this process; an override that is None leaves the variable its say.

    Raises:
        ValueError: flags or variables have values that do not work; the text names all of them.
    """
    return settings.read(WorkerSettings, **overrides)


def check() -> None:
    """Look at everything that can be looked at without connecting to anything.

    Raises:
        ValueError: a variable has a value that does not work.
    """
    from .sinks import open_sink

    open_sink(load().sink_url)
