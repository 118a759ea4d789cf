"""What the environment may say to the Kafka client: which keys, what goes with what, what may be shown.

Pure functions over texts; ``broker.settings`` reads the environment. Source of every key: librdkafka 2.16,
CONFIGURATION.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from .options import MASK, is_secret, public_url, same_hosts

Scalar = str | int | float | bool

# Each of these has a variable of its own.
VARIABLES = {
    "bootstrap.servers": "KAFKA_BOOTSTRAP_SERVERS",
    "security.protocol": "KAFKA_SECURITY_PROTOCOL",
    "sasl.mechanism": "KAFKA_SASL_MECHANISM",
    "sasl.username": "KAFKA_SASL_USERNAME",
    "sasl.password": "KAFKA_SASL_PASSWORD",
    "ssl.ca.location": "KAFKA_SSL_CA_LOCATION",
    "ssl.certificate.location": "KAFKA_SSL_CERTIFICATE_LOCATION",
    "ssl.key.location": "KAFKA_SSL_KEY_LOCATION",
    "ssl.key.password": "KAFKA_SSL_KEY_PASSWORD",
}
_ALIASES = {
    "metadata.broker.list": "bootstrap.servers",
    "sasl.mechanisms": "sasl.mechanism",
    "request.required.acks": "acks",
    "auto.commit.enable": "enable.auto.commit",
}
_REFUSED = {
    "acks": "publish returns once every replica in sync has stored the message",
    "auto.offset.reset": "where a group begins is said by ensure(start=...)",
    "enable.auto.commit": "only finished work is committed, by the library",
    "enable.auto.offset.store": "only finished work is committed, by the library",
    "enable.idempotence": "a send that is tried again must not store a message twice",
    "enable.partition.eof": "the end of a partition is no message",
    "group.id": "the group is the one given to subscribe",
    "group.instance.id": "all members in one process would be the same member, and fence each other off",
    "group.protocol": "use ?protocol=... in BROKER_URL",
    "isolation.level": "what an aborted transaction wrote must not be received",
    "partition.assignment.strategy": "finished work is committed before a partition is given up, which rests"
    " on how partitions change hands",
    "session.timeout.ms": "use ?session=... (seconds) in BROKER_URL",
    "transactional.id": "publishing opens no transaction, so every send would fail",
}
# Values that librdkafka reads in either case.
_CASELESS = {"security.protocol", "sasl.mechanism"}
# These log in with something other than a name and a password.
_WITHOUT_PASSWORD = {"OAUTHBEARER", "GSSAPI"}


def client_config(given: Mapping[str, str], text: str | None) -> dict[str, Any]:
    """Return what the client is told, secrets in the clear.

    Args:
        given: values of the variables in ``VARIABLES``, by key.
        text: ``KAFKA_CLIENT_CONFIG``.

    Raises:
        ValueError: a key is refused, two variables contradict each other, or one lacks another. The text
            names the variables and shows no secret.
    """
    extra = _parse(text) if text else {}
    for key in extra.keys() & given.keys():
        if not _same(key, given[key], extra[key]):
            shown = ("", "") if is_secret(key) else (f"={given[key]!r}", f"={extra[key]!r}")
            raise ValueError(
                f"{VARIABLES[key]}{shown[0]} and {key}{shown[1]} in KAFKA_CLIENT_CONFIG contradict each"
                " other; unset one of them"
            )
    if "bootstrap.servers" in extra and "bootstrap.servers" not in given:
        raise ValueError(
            "bootstrap.servers in KAFKA_CLIENT_CONFIG does not work; set KAFKA_BOOTSTRAP_SERVERS, or"
            " BROKER_URL=kafka://host:port"
        )
    config = {**extra, **given}
    _check_security(config, {key: VARIABLES[key] for key in given})
    return config


def masked(text: str) -> str:
    """Return ``KAFKA_CLIENT_CONFIG`` as it may be shown; nothing of it when it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return MASK
    if not isinstance(found, dict):
        return MASK
    return json.dumps({key: _masked_value(key, value) for key, value in found.items()})


def unverified(config: Mapping[str, Any]) -> str | None:
    """Return the key by which this configuration trusts any server, if there is one."""
    if str(config.get("enable.ssl.certificate.verification", "true")).lower() in ("false", "f", "0"):
        return "enable.ssl.certificate.verification"
    if str(config.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
        return "ssl.endpoint.identification.algorithm"
    return None


def _masked_value(key: str, value: object) -> object:
    if is_secret(key) or isinstance(value, dict | list):
        return MASK
    return public_url(value) if isinstance(value, str) else value


def _parse(text: str) -> dict[str, Scalar]:
    """Return the keys of a JSON object of scalars, aliases replaced by the name they stand for."""
    found: Any = None
    problem = None
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:
        problem = str(error)
    if problem is not None:  # outside of the handlers, because a JSON error carries the whole text
        raise ValueError(f"KAFKA_CLIENT_CONFIG {problem}")
    if not isinstance(found, dict):
        raise ValueError(
            'KAFKA_CLIENT_CONFIG must be a JSON object of librdkafka keys, such as {"linger.ms": 5}'
        )
    for key, value in found.items():
        if not isinstance(value, Scalar):
            raise ValueError(
                f"KAFKA_CLIENT_CONFIG: the value of {key} must be a text, a number, true or false"
            )
        if reason := _REFUSED.get(_name(key)):
            raise ValueError(f"KAFKA_CLIENT_CONFIG must not set {key}: {reason}")
    config: dict[str, Scalar] = {_name(key): value for key, value in found.items()}
    if len(config) < len(found):
        twice = next(key for key, name in _ALIASES.items() if key in found and name in found)
        raise ValueError(f"KAFKA_CLIENT_CONFIG sets both {twice} and {_ALIASES[twice]}, which are one")
    return config


def _name(key: str) -> str:
    return _ALIASES.get(key, key)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for key in found:
        if sum(key == each for each, _ in pairs) > 1:
            raise ValueError(f"sets {key} twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is not JSON")


def _same(key: str, one: str, other: Scalar) -> bool:
    if key == "bootstrap.servers":
        try:
            return same_hosts(one, str(other))
        except ValueError:
            return False
    if key in _CASELESS:
        return one.upper() == str(other).upper()
    return one == str(other)


def _check_security(config: Mapping[str, Scalar], variables: Mapping[str, str]) -> None:
    """Refuse a login that is never used, and a protocol that lacks its login.

    Args:
        config: what the client is told.
        variables: where a key came from; all others came from ``KAFKA_CLIENT_CONFIG``.
    """

    def named(key: str) -> str:
        return variables.get(key, f"{key} in KAFKA_CLIENT_CONFIG")

    protocol = str(config.get("security.protocol", "plaintext")).upper()
    said = (
        f"{named('security.protocol')} is {protocol}"
        if "security.protocol" in config
        else "KAFKA_SECURITY_PROTOCOL is not set, which means PLAINTEXT"
    )
    for prefix, part, works, what in (
        ("sasl.", "SASL_", "SASL_SSL or SASL_PLAINTEXT", "logs in"),
        ("ssl.", "SSL", "SSL or SASL_SSL", "encrypts"),
    ):
        unused = [key for key in config if key.startswith(prefix)]
        if unused and part not in protocol:
            raise ValueError(
                f"{named(unused[0])} is set, but {said}, and only {works} {what}; set KAFKA_SECURITY_PROTOCOL"
                f"={works.replace(' or ', ' or =')}, or unset {named(unused[0])}"
            )
    if not protocol.startswith("SASL_"):
        return
    if "sasl.mechanism" not in config:
        raise ValueError(
            f"{said}, which needs KAFKA_SASL_MECHANISM: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or"
            " GSSAPI"
        )
    mechanism = str(config["sasl.mechanism"]).upper()
    missing = [VARIABLES[key] for key in ("sasl.username", "sasl.password") if key not in config]
    if missing and mechanism not in _WITHOUT_PASSWORD:
        raise ValueError(
            f"{said} and {named('sasl.mechanism')} is {mechanism}, which needs {' and '.join(missing)}"
        )
