"""What is taken from URLs and lists of hosts, and what of them may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.drivers.options import host_list, is_secret, public_url, split_url


@pytest.mark.parametrize(
    ("text", "port", "hosts"),
    [
        ("a:1", None, ["a:1"]),
        ("a", 9092, ["a:9092"]),
        ("broker_1.svc.local:09092, 10.0.0.1:2", 9092, ["broker_1.svc.local:9092", "10.0.0.1:2"]),
        ("[::1]", 9092, ["[::1]:9092"]),
        ("[2001:db8::1]:65535", 9092, ["[2001:db8::1]:65535"]),
    ],
)
def test_hosts_are_read(text: str, port: int | None, hosts: list[str]) -> None:
    """With the default port where one is left out, and IPv6 in brackets."""
    assert host_list(text, port) == hosts


@pytest.mark.parametrize(
    "text",
    [
        *("", "a:1,", ",", "a:", ":9092", "a:0", "a:65536", "a:-1", "a:x", "a:１", "a:1:2", "a b:1", "a/b:1"),
        *("::1", "[::1", "[::1]9", "[a]:1", "PLAINTEXT://a:1", "u:p@a:1", "a:1;b:1"),
    ],
)
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    """Before a client tries to connect to it for minutes."""
    with pytest.raises(ValueError, match=r"host|port|address|colons"):
        host_list(text, 9092)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_a_list_of_hosts_or_a_value_error(text: str) -> None:
    """Nothing else escapes; and what is read once reads the same again."""
    try:
        hosts = host_list(text, 9092)
    except ValueError:
        return
    assert host_list(",".join(hosts)) == hosts


PASSWORDS = ["hunter2", "hu/nter2", "hu@nter2", "hu?nter2", "hu#nter2", "hu,nter2", "hu nter2", "hu:nter2"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["kafka://", "pubsub://", "postgresql://", "amqp://", "kafka:", ""])
def test_a_url_is_shown_without_its_password(scheme: str, password: str) -> None:
    """Whatever characters a password holds, escaped or not."""
    shown = public_url(f"{scheme}bob:{password}@host:1/x")
    assert "nter2" not in shown
    assert "bob" not in shown
    assert shown.endswith("***@host:1/x")


def test_options_that_are_secret_are_masked() -> None:
    """The rest of a URL stays as it is."""
    assert public_url("kafka://a?sasl.password=hunter2&session=9") == (
        "kafka://a?sasl.password=**********&session=9"
    )
    assert public_url("postgresql://h/db?sslmode=require&password=hun=ter") == (
        "postgresql://h/db?sslmode=require&password=**********"
    )
    for url in ("sqlite:////tmp/a@b/queue.db", "memory://x?lease=5", "console:", "topic:images", "q.db"):
        assert public_url(url) == url


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_splits_like_a_url(text: str) -> None:
    """Nothing raises, nothing is lost."""
    scheme, authority, rest = split_url(text)
    assert text.lower().endswith((authority + rest).lower())
    assert not scheme or text.lower().startswith(scheme)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("sasl.password", True),
        ("ssl.key.password", True),
        ("ssl.key.pem", True),
        ("ssl.keystore.password", True),
        ("sasl.oauthbearer.client.secret", True),
        ("sasl.oauthbearer.client.credentials.client.secret", True),
        ("sasl.oauthbearer.config", True),
        ("sasl.oauthbearer.assertion.private.key.passphrase", True),
        ("sasl.kerberos.kinit.cmd", True),
        ("ssl_key", True),
        ("sasl.username", False),
        ("sasl.mechanism", False),
        ("sasl.oauthbearer.token.endpoint.url", False),
        ("ssl.key.location", False),
        ("linger.ms", False),
        ("order", False),
    ],
)
def test_secret_names_are_known(name: str, secret: bool) -> None:
    """All that librdkafka marks as sensitive, and more."""
    assert is_secret(name) is secret
