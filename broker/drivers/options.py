"""What a backend takes from its URL, and what of it may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address

MASK = "**********"
KAFKA_PORT = 9092
# Backends that remove what is too old themselves look once in so many seconds.
SWEEP_S = LEAST_RETENTION_S = 60.0
GONE = "%d message(s) of topic %r that were not settled are older than its retention, and removed"
_LOGIN = {
    "kafka": "set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD",
    "pubsub": "Pub/Sub takes application-default credentials (GOOGLE_APPLICATION_CREDENTIALS)",
}
# Wide on purpose: a harmless value that is masked costs a look at the environment, a secret shown costs more.
# Source: the properties that librdkafka 2.16 marks sensitive, and libpq's connection parameters.
_SECRET = re.compile(
    r"pass(word|phrase|wd)|secret|token|credential|oauthbearer\.config|kinit|jaas|pem$|private|(^|[._-])key$",
    re.IGNORECASE,
)
_NOT_SECRET = re.compile(r"\.(url|location|method)$", re.IGNORECASE)
# A path ("sqlite:///a@b", "/a@b") has no user part. The "+" keeps the scheme: without it ":///" backtracks.
_USER = re.compile(r"^([a-z][a-z0-9+.-]*://|//)?+(?!/).*@", re.IGNORECASE | re.DOTALL)
_OPTION = re.compile(r"([?&])([^=&?]+)=([^&]*)")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(//)?(.*)", re.IGNORECASE | re.DOTALL)
# Domain-scoped ids have a dot and a colon. Source: cloud.google.com, "Creating and managing projects".
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
_HOST = re.compile(r"[\w.-]+")
# What Kafka topics (249 characters) and Pub/Sub names (a letter first) both take, with room for ".dlq".
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,119}")


def public_url(url: str) -> str:
    """Return ``url`` without user, password and options that look secret, for logs and errors.

    Everything before the last ``@`` goes, because a password may itself hold ``/``, ``?`` or ``@``.
    """
    return _OPTION.sub(
        lambda option: f"{option[1]}{option[2]}={MASK}" if option[3] and is_secret(option[2]) else option[0],
        _USER.sub(r"\1***@", url),
    )


def is_secret(name: str) -> bool:
    """Say whether a setting with this name holds something that must not be shown."""
    return bool(_SECRET.search(name)) and not _NOT_SECRET.search(name)


def split_url(url: str) -> tuple[str, str, str]:
    """Return scheme (lower case), authority and what follows it.

    Unlike ``urllib.parse.urlsplit`` it takes a list of hosts, IPv6 among them, and never raises.
    """
    parts = _SCHEME.fullmatch(url)
    if parts is None:
        return "", "", url
    if not parts[2]:
        return parts[1].lower(), "", parts[3]
    end = re.search(r"[/?#]", parts[3])
    at = end.start() if end else len(parts[3])
    return parts[1].lower(), parts[3][:at], parts[3][at:]


def check_url(url: str) -> str:
    """Return ``url`` as it is; a ``kafka://`` or ``pubsub://`` URL is looked at, others by their driver.

    URLs are logged and compared, so credentials have variables of their own.

    Raises:
        ValueError: it holds credentials, or names no host or project; the text repeats no credentials.
    """
    scheme, authority, _ = split_url(url)
    if scheme not in _LOGIN:
        return url
    if "@" in url:  # anywhere, because a password may itself hold "/" or "?"
        raise ValueError(f"credentials do not belong in a URL; {_LOGIN[scheme]}")
    if not url[len(scheme) :].startswith("://"):
        raise ValueError(f"write {scheme}:// with two slashes")
    if authority and scheme == "kafka":
        host_list(authority, KAFKA_PORT)
    elif authority:
        check_project(authority)
    return url


def check_project(text: str) -> str:
    """Return the id of a Google Cloud project as it is.

    Raises:
        ValueError: it is none.
    """
    if not _PROJECT.fullmatch(text):
        raise ValueError("a project is named by its id alone, as in my-project-123")
    return text


def check_name(text: str) -> str:
    """Return the name of a topic or a group as it is.

    Raises:
        ValueError: no backend takes it.
    """
    if not _NAME.fullmatch(text):
        raise ValueError("a name is a letter, then letters, digits and . _ -, 120 at most")
    return text


def host_list(text: str, default_port: int | None = None) -> list[str]:
    """Return the addresses of ``host:port,host:port``, each with its port.

    Args:
        text: as an environment variable or the authority of a URL has it.
        default_port: for a host without one; None asks for it.

    Raises:
        ValueError: not such a list; the text says which part and why.
    """
    if "@" in text:
        advice = f"; {_LOGIN['kafka']}" if default_port == KAFKA_PORT else ""
        raise ValueError(f"credentials do not belong in a list of hosts{advice}")
    if "://" in text:
        raise ValueError("write host:port without a scheme")
    return [_address(each.strip(), default_port) for each in text.split(",")]


def same_hosts(one: str, other: str) -> bool:
    """Say whether two lists for Kafka name the same addresses, in any order."""
    first, second = ({each.casefold() for each in host_list(text, KAFKA_PORT)} for text in (one, other))
    return first == second


def _address(text: str, default_port: int | None) -> str:
    if not text:
        raise ValueError("a host is empty; write host:port, separated by commas")
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        try:
            IPv6Address(host[1:])
        except ValueError:
            bracket = ""
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an IPv6 address as in [::1]:9092")
        host, colon, port = f"{host}]", rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
        if ":" in port:
            raise ValueError(f"{text!r} has several colons; write IPv6 in brackets, as in [::1]:9092")
        if not _HOST.fullmatch(host):
            raise ValueError(f"{text!r} names no host; write host:port")
    if not colon and default_port is not None:
        return f"{host}:{default_port}"
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text!r} needs a port from 1 to 65535, as in {host}:{default_port or 8085}")
    return f"{host}:{int(port)}"


def take_seconds(options: Mapping[str, str], defaults: Mapping[str, float]) -> dict[str, float]:
    """Return ``defaults`` overridden by ``options``, all in seconds above 0.

    Raises:
        ValueError: an unknown option, or a value that is no number above 0.
    """
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(
            f"unknown option {unknown[0]!r}; in seconds there are {', '.join(sorted(defaults))};"
            " docs/configuration.md lists every option"
        )
    values = dict(defaults)
    for name, text in options.items():
        try:
            values[name] = float(text)
        except ValueError:
            raise ValueError(f"option {name}={text!r} is not a number of seconds") from None
        if not 0 < values[name] < float("inf"):
            raise ValueError(f"option {name}={text!r} must be above 0 seconds")
    return values
