"""The only reader of the broker's environment: which backend, where, with which credentials.

Each backend has settings of its own, read only when that backend is used: a variable that another program
left in the environment (the Kafka server image takes ``KAFKA_...``, too) breaks nobody who uses no Kafka.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .drivers.librdkafka import VARIABLES, client_config, unverified
from .drivers.options import (
    KAFKA_PORT,
    MASK,
    check_project,
    check_url,
    host_list,
    public_url,
    same_hosts,
    split_url,
)

Backend = Literal["memory", "sqlite", "kafka", "pubsub"]
Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"]

DEV_PROJECT = "couturier-dev"


class _Settings(BaseSettings):
    """What every backend asks for."""

    # Errors of pydantic quote their input; that of a secret must not be in any text.
    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    couturier_env: Literal["development", "production"] = Field(
        default="development",
        description="`production` refuses emulators, a queue in memory and unverified TLS",
    )


class BrokerSettings(_Settings):
    """``BROKER_URL``, or ``BROKER_BACKEND`` and that backend's own variables.

    With neither, every process of this user shares one SQLite queue in the state directory.
    """

    # Not in the repr, because a URL may hold a password.
    broker_url: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None,
        repr=False,
        description="where the broker is: `kafka://host:port`, `pubsub://project`, `sqlite:///queue.db`,"
        " `memory://`; unset: the queue of the state directory",
    )
    broker_backend: Backend | None = Field(default=None, description="which backend, at its default place")
    couturier_home: Path | None = Field(
        default=None,
        description="state directory of the embedded default; unset: `$XDG_STATE_HOME/couturier`, else"
        " `~/.local/state/couturier`",
    )


class ClaimCheckSettings(_Settings):
    """Where bodies go that are too large for the broker; read whatever the broker is."""

    broker_claim_check_url: str | None = Field(
        default=None,
        repr=False,
        description="where bodies too large for the broker are kept; unset: they are refused",
    )
    broker_claim_check_retention: float = Field(
        default=14 * 86_400.0,
        gt=0,
        allow_inf_nan=False,
        description="how long such a body is kept, seconds",
    )


class KafkaSettings(_Settings):
    """How to reach and log in to Kafka; read when ``kafka`` is the backend."""

    kafka_bootstrap_servers: str | None = Field(
        default=None,
        description="`host:port`, separated by commas; unset: `localhost:9092`, or those of `BROKER_URL`",
    )
    kafka_security_protocol: Protocol | None = Field(
        default=None, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; unset: PLAINTEXT"
    )
    kafka_sasl_mechanism: Mechanism | None = Field(
        default=None,
        description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI (these two without password)",
    )
    kafka_sasl_username: str | None = Field(default=None, description="who logs in")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="with which password")
    kafka_ssl_ca_location: str | None = Field(
        default=None,
        description="file or directory of trusted authorities, or `probe`; unset: the system's",
    )
    kafka_ssl_certificate_location: str | None = Field(default=None, description="the client's, a PEM file")
    kafka_ssl_key_location: str | None = Field(default=None, description="its private key, a PEM file")
    kafka_ssl_key_password: SecretStr | None = Field(default=None, description="what opens that key")
    kafka_client_config: SecretStr | None = Field(
        default=None, description='any other librdkafka keys, a JSON object: `{"client.rack": "a"}`'
    )

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _check_hosts(cls, text: str | None) -> str | None:
        return text and ",".join(host_list(text, KAFKA_PORT))

    @field_validator("kafka_security_protocol", "kafka_sasl_mechanism", mode="before")
    @classmethod
    def _upper(cls, text: object) -> object:
        return text.upper() if isinstance(text, str) else text  # librdkafka reads either case

    @field_validator("kafka_ssl_ca_location", "kafka_ssl_certificate_location", "kafka_ssl_key_location")
    @classmethod
    def _check_file(cls, text: str | None) -> str | None:
        if text and text != "probe" and not Path(text).exists():
            raise ValueError("there is no such file")
        return text


class PubsubSettings(_Settings):
    """Which project of Google Cloud; read when ``pubsub`` is the backend."""

    google_cloud_project: Annotated[str, AfterValidator(check_project)] | None = Field(
        default=None,
        description=f"the project; unset: that of `BROKER_URL`, or `{DEV_PROJECT}` on the emulator",
    )
    google_application_credentials: Path | None = Field(
        default=None,
        description="credentials file; unset: those of `gcloud auth application-default login`, or of the"
        " machine",
    )
    pubsub_emulator_host: str | None = Field(
        default=None, description="`host:port` of the emulator, which takes the place of Google Cloud"
    )

    @field_validator("pubsub_emulator_host")
    @classmethod
    def _check_host(cls, text: str | None) -> str | None:
        hosts = host_list(text) if text else [None]
        if len(hosts) > 1:
            raise ValueError("there is one emulator; write host:port")
        return hosts[0]


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
    settings = read(BrokerSettings)
    url, backend = settings.broker_url, settings.broker_backend
    scheme = split_url(url)[0] if url else backend or "sqlite"
    named = f"BROKER_URL={public_url(url)!r}" if url else f"BROKER_BACKEND={backend!r}"
    if backend and scheme != backend:
        raise _contradiction(named, f"BROKER_BACKEND={backend!r}")
    if scheme == "memory" and settings.couturier_env == "production":
        raise _contradiction(
            named, "COUTURIER_ENV='production'", "use kafka, pubsub or sqlite: memory ends with its process"
        )
    if scheme == "kafka":
        return _kafka_url(url)
    if scheme == "pubsub":
        return _pubsub_url(url)
    if url:
        return url
    return "memory://" if backend == "memory" else f"sqlite:///{quote(str(home().absolute() / 'queue.db'))}"


def kafka_client_config() -> dict[str, Any]:
    """Return what the environment tells every Kafka client, by librdkafka key; secrets in the clear.

    Without ``bootstrap.servers``, which the URL names. It goes to the client and nowhere else.

    Raises:
        ValueError: a variable does not work, or two contradict each other; the text shows no secret.
    """
    settings = read(KafkaSettings)
    given: dict[str, str] = {}
    for key, variable in VARIABLES.items():
        if value := getattr(settings, variable.lower()):
            given[key] = value.get_secret_value() if isinstance(value, SecretStr) else value
    extra = settings.kafka_client_config
    config = client_config(given, extra.get_secret_value() if extra else None)
    config.pop("bootstrap.servers", None)
    if settings.couturier_env == "production" and (open_door := unverified(config)):
        raise _contradiction(
            f"{open_door}={config[open_door]!r} in KAFKA_CLIENT_CONFIG",
            "COUTURIER_ENV='production'",
            "remove the key",
        )
    return config


def pubsub_emulator_host() -> str | None:
    """Return ``host:port`` of the Pub/Sub emulator; None: Google Cloud itself.

    Raises:
        ValueError: it is not such an address, or this is production.
    """
    settings = read(PubsubSettings)
    host = settings.pubsub_emulator_host
    if host and settings.couturier_env == "production":
        raise _contradiction(f"PUBSUB_EMULATOR_HOST={host!r}", "COUTURIER_ENV='production'")
    return host


def claim_check() -> tuple[str, float] | None:
    """Return where large bodies are kept and for how many seconds; None: nowhere.

    Raises:
        ValueError: a variable has a value that does not work.
    """
    settings = read(ClaimCheckSettings)
    if settings.broker_claim_check_url is None:
        return None
    return settings.broker_claim_check_url, settings.broker_claim_check_retention


def _kafka_url(url: str | None) -> str:
    """Return ``url``, with the hosts of the environment where it names none."""
    kafka_client_config()  # what contradicts must fail at start, not at the first connection
    servers = read(KafkaSettings).kafka_bootstrap_servers
    if url is None:
        return f"kafka://{servers or f'localhost:{KAFKA_PORT}'}"
    _, authority, rest = split_url(url)
    if authority:
        if servers and not same_hosts(authority, servers):
            raise _contradiction(f"BROKER_URL={public_url(url)!r}", f"KAFKA_BOOTSTRAP_SERVERS={servers!r}")
        return url
    if not servers:
        raise ValueError(
            f"BROKER_URL={public_url(url)!r} names no host; write kafka://host:port, or set"
            " KAFKA_BOOTSTRAP_SERVERS"
        )
    return f"kafka://{servers}{rest}"


def _pubsub_url(url: str | None) -> str:
    """Return ``url``, with the project of the environment where it names none."""
    emulator = pubsub_emulator_host()
    settings = read(PubsubSettings)
    _, named, rest = split_url(url or "pubsub://")
    project = settings.google_cloud_project
    if named and project and named != project:
        raise _contradiction(f"BROKER_URL={public_url(url or '')!r}", f"GOOGLE_CLOUD_PROJECT={project!r}")
    if not (named or project or emulator):
        raise ValueError(
            "no Google Cloud project is named; set GOOGLE_CLOUD_PROJECT, for example to the one that `gcloud"
            " config set project` chose: GOOGLE_CLOUD_PROJECT=$(gcloud config get project)"
        )
    file = settings.google_application_credentials
    if file and not emulator and not file.is_file():
        raise ValueError(f"GOOGLE_APPLICATION_CREDENTIALS={str(file)!r} does not work: there is no such file")
    return f"pubsub://{named or project or DEV_PROJECT}{rest}"


def _contradiction(one: str, other: str, advice: str = "unset one of them") -> ValueError:
    return ValueError(f"{one} and {other} contradict each other; {advice}")


_S = TypeVar("_S", bound=BaseSettings)


def read(model: type[_S], /, **given: Any) -> _S:
    """Return settings as the environment says; what is given wins over it, None leaves it its say.

    Raises:
        ValueError: some values do not work; the text names every one of them and shows no secret.
    """
    try:
        return model(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [_problem(model, str(e["loc"][0]), e["input"], e["msg"]) for e in error.errors()]
    # Raised out here, so that no error in its chain holds the values.
    raise ValueError("; ".join(problems))


def _problem(model: type[BaseSettings], name: str, value: object, message: str) -> str:
    (field,) = (
        each for key, each in model.model_fields.items() if name in (key, key.upper(), each.validation_alias)
    )
    secret = "SecretStr" in str(field.annotation)
    shown = MASK if secret else public_url(str(value))
    return f"{name.upper()}={shown!r} does not work: {message.removeprefix('Value error, ')}"
