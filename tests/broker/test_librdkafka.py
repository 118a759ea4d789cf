"""What ``KAFKA_CLIENT_CONFIG`` may say, beside the variables."""

from __future__ import annotations

import json

import pytest

from broker.drivers.librdkafka import client_config, masked, unverified

SASL = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}


def test_both_become_one() -> None:
    """Whichever says it; the same value twice is no contradiction, in whatever case the client reads."""
    extra = {
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": "plain",
        "sasl.username": "b",
        "linger.ms": 5,
    }
    assert client_config({**SASL, "sasl.password": "p"}, json.dumps(extra)) == {
        **SASL,
        "sasl.username": "b",
        "sasl.password": "p",
        "linger.ms": 5,
    }
    assert client_config({"bootstrap.servers": "a:9092,b:1"}, '{"metadata.broker.list": "b:1,a"}') == {
        "bootstrap.servers": "a:9092,b:1"
    }
    assert client_config({}, None) == {}


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "gssapi"])
def test_tokens_and_tickets_need_no_password(mechanism: str) -> None:
    """They log in by keys of their own."""
    text = json.dumps({"sasl.mechanism": mechanism, "sasl.oauthbearer.method": "oidc"})
    assert client_config({"security.protocol": "SASL_SSL"}, text)["sasl.mechanism"] == mechanism


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"enable.ssl.certificate.verification": false}', "enable.ssl.certificate.verification"),
        ('{"enable.ssl.certificate.verification": "False"}', "enable.ssl.certificate.verification"),
        ('{"enable.ssl.certificate.verification": 0}', "enable.ssl.certificate.verification"),
        ('{"enable.ssl.certificate.verification": true}', None),
        ('{"linger.ms": 5}', None),
    ],
)
def test_trusting_anyone_is_noticed(text: str, key: str | None) -> None:
    """However JSON writes it."""
    assert unverified(client_config({}, text)) == key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("enable.auto.commit", "finished"),
        ("auto.commit.enable", "finished"),
        ("enable.auto.offset.store", "finished"),
        ("group.id", "subscribe"),
        ("group.instance.id", "member"),
        ("auto.offset.reset", "ensure"),
        ("enable.idempotence", "twice"),
        ("acks", "replica"),
        ("request.required.acks", "replica"),
        ("partition.assignment.strategy", "partition"),
        ("isolation.level", "aborted"),
        ("enable.partition.eof", "partition"),
        ("session.timeout.ms", "?session="),
        ("group.protocol", "?protocol="),
        ("transactional.id", "transaction"),
    ],
)
def test_keys_that_guarantees_rest_upon_are_refused(key: str, why: str) -> None:
    """By name, and with the reason."""
    with pytest.raises(ValueError, match="KAFKA_CLIENT_CONFIG") as error:
        client_config({}, json.dumps({key: "x"}))
    assert key in str(error.value)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sasl.password": "hunter2"', "not JSON"),
        ("sasl.password=hunter2", "not JSON"),
        ('["hunter2"]', "JSON object"),
        ('"hunter2"', "JSON object"),
        ('{"sasl.password": ["hunter2"]}', "sasl.password must be"),
        ('{"sasl.password": {"hunter2": 1}}', "sasl.password must be"),
        ('{"sasl.password": null}', "sasl.password must be"),
        ('{"sasl.password": "hunter2", "sasl.password": "hunter2"}', "sasl.password twice"),
        ('{"sasl.mechanism": "a", "sasl.mechanisms": "hunter2"}', "sasl.mechanisms"),
        ('{"linger.ms": NaN}', "NaN"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_client_config_is_a_json_object_of_scalars(text: str, said: str) -> None:
    """The error says what is wrong, and quotes nothing of it."""
    with pytest.raises(ValueError, match="KAFKA_CLIENT_CONFIG") as error:
        client_config({}, text)
    assert said in str(error.value) or "nested" in str(error.value)
    assert "hunter2" not in str(error.value) + repr(error.value.__context__)


def test_client_config_is_shown_without_its_secrets() -> None:
    """Harmless keys stay readable; what cannot be read is not shown at all."""
    shown = masked(
        '{"linger.ms": 5, "sasl.password": "p", "x": ["p"], "http.proxy": "http://u:p@h", "b": true}'
    )
    assert json.loads(shown) == {
        "linger.ms": 5,
        "sasl.password": "**********",
        "x": "**********",
        "http.proxy": "http://***@h",
        "b": True,
    }
    for text in ("{", '"p"', "[1]", "[" * 100_000):
        assert masked(text) == "**********"
