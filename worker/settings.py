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

Engine = Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "torch"]
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
    sink_url: str = Field(
        default_factory=default_url,
        repr=False,  # it may hold a password
        validation_alias="SINK_URL",
        description="where results go; several places, separated by commas",
    )
    results_days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        validation_alias="COUTURIER_RESULTS_RETENTION",
        description="days after which rows in a database are removed; never if unset",
    )
    model: Path | None = Field(
        default=None,
        validation_alias="COUTURIER_MODEL",
        description="a bundle's directory, or `student` or `base`, which are shipped; student if unset",
    )
    engine: Engine = Field(
        default="onnx",
        validation_alias="COUTURIER_ENGINE",
        description="onnx, onnx-int8, openvino, openvino-int8 or torch",
    )
    abstain: bool = Field(
        default=True,
        validation_alias="COUTURIER_ABSTAIN",
        description="a row has the status `abstained` where the model is not sure enough, its best guess"
        " beside it; false: `ok` as any other",
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
    until_stdin_closes: bool = Field(
        default=False,
        validation_alias="COUTURIER_UNTIL_STDIN_CLOSES",
        description="drain when standard input ends, too: so that a worker does not outlive who started it",
    )
    http_host: str = Field(
        default="127.0.0.1",
        validation_alias="COUTURIER_HTTP_HOST",
        description="where /livez, /readyz, /metrics and /status are served; 0.0.0.0 in a container",
    )
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        validation_alias="COUTURIER_HTTP_PORT",
        description="their port; unset: any free one, which `couturier status` finds; the second of several"
        " workers takes the next",
    )
    lag_interval_s: float | None = Field(
        default=None,
        ge=0,
        validation_alias="COUTURIER_LAG_INTERVAL",
        description="how often the backlog is measured, seconds; 0 is never; unset: 15, never on Pub/Sub",
    )
    predict_timeout_s: float = Field(
        default=30.0,
        gt=0,
        validation_alias="COUTURIER_PREDICT_TIMEOUT",
        description="the engine is killed when it makes no progress for this long, seconds",
    )
    crashes: int = Field(
        default=3,
        ge=1,
        validation_alias="COUTURIER_CRASHES",
        description="deaths of the engine before the dead letter",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=128,
        validation_alias="COUTURIER_MEMORY_MB",
        description="most memory of the engine, MiB; no limit if unset",
    )
    threads: int = Field(
        default=1, ge=1, validation_alias="COUTURIER_THREADS", description="threads of one prediction"
    )
    processes: int = Field(
        default=1, ge=1, le=256, validation_alias="COUTURIER_PROCESSES", description="workers on this machine"
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


def environment(**overrides: Any) -> dict[str, str]:
    """Return our environment with overrides written into it, for a process that shall see the same."""
    names = {name: str(field.validation_alias) for name, field in WorkerSettings.model_fields.items()}
    said = {names[name]: str(value) for name, value in overrides.items() if value is not None}
    return {**os.environ, **said}


def check() -> None:
    """Look at everything that can be looked at without connecting to anything.

    Raises:
        ValueError: a variable has a value that does not work.
    """
    from .sinks import open_sink

    found = load()
    open_sink(found.sink_url, found.results_days)
