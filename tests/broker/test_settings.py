"""The broker's environment: what works, what contradicts what, and that no secret is ever in a text."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.drivers.options import check_url
from broker.settings import (
    BrokerSettings,
    ClaimCheckSettings,
    KafkaSettings,
    PubsubSettings,
    broker_url,
    claim_check,
    kafka_client_config,
    pubsub_emulator_host,
)

MODELS = (BrokerSettings, ClaimCheckSettings, KafkaSettings, PubsubSettings)
PLAIN_LOGIN = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "bob",
    "KAFKA_SASL_PASSWORD": "hunter2",
}
Environment = Callable[..., None]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets variables; nothing of this machine's environment counts."""
    for model in MODELS:
        for name in model.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def config(**keys: object) -> dict[str, str]:
    """Return the variable with librdkafka keys; ``__`` stands for a dot."""
    return {"KAFKA_CLIENT_CONFIG": json.dumps({key.replace("__", "."): keys[key] for key in keys})}


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"BROKER_BACKEND": "kafka"}, "kafka://localhost:9092"),
        ({"BROKER_BACKEND": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "a:1,b:2"}, "kafka://a:1,b:2"),
        ({"BROKER_BACKEND": "kafka", "KAFKA_BOOTSTRAP_SERVERS": " a , [::1]:7 "}, "kafka://a:9092,[::1]:7"),
        ({"BROKER_URL": "kafka://?session=9", "KAFKA_BOOTSTRAP_SERVERS": "a:1"}, "kafka://a:1?session=9"),
        ({"BROKER_URL": "kafka://A:1,b", "KAFKA_BOOTSTRAP_SERVERS": "b:9092,a:1"}, "kafka://A:1,b"),
        ({"BROKER_URL": "kafka://[::1]:1,[fe80::2]:2"}, "kafka://[::1]:1,[fe80::2]:2"),
        ({"BROKER_BACKEND": "pubsub", "GOOGLE_CLOUD_PROJECT": "my-project"}, "pubsub://my-project"),
        ({"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": "localhost:8085"}, "pubsub://couturier-dev"),
        (
            {"BROKER_URL": "pubsub://?lease=60", "GOOGLE_CLOUD_PROJECT": "my-project"},
            "pubsub://my-project?lease=60",
        ),
        ({"BROKER_URL": "pubsub://example.com:p1"}, "pubsub://example.com:p1"),
        ({"BROKER_URL": "kafka://a:1", "BROKER_BACKEND": "kafka"}, "kafka://a:1"),
        ({"BROKER_BACKEND": "memory", "COUTURIER_ENV": "development"}, "memory://"),
        ({"BROKER_URL": "sqlite:///q@1.db", "COUTURIER_ENV": "production"}, "sqlite:///q@1.db"),
    ],
)
def test_the_variables_make_the_url(env: Environment, variables: dict[str, str], url: str) -> None:
    """Each backend by one variable, with the names that its users expect."""
    env(**variables)
    assert broker_url() == url


CONTRADICTIONS = {
    "backend": ({"BROKER_URL": "kafka://a:1", "BROKER_BACKEND": "pubsub"}, "BROKER_URL BROKER_BACKEND"),
    "hosts": (
        {"BROKER_URL": "kafka://a:1", "KAFKA_BOOTSTRAP_SERVERS": "b:1"},
        "BROKER_URL KAFKA_BOOTSTRAP_SERVERS",
    ),
    "one host of two": (
        {"BROKER_URL": "kafka://a:1,b:1", "KAFKA_BOOTSTRAP_SERVERS": "a:1"},
        "BROKER_URL KAFKA_BOOTSTRAP_SERVERS",
    ),
    "project": (
        {"BROKER_URL": "pubsub://one", "GOOGLE_CLOUD_PROJECT": "two"},
        "BROKER_URL GOOGLE_CLOUD_PROJECT",
    ),
    "emulator": (
        {"BROKER_URL": "pubsub://one", "PUBSUB_EMULATOR_HOST": "e:1", "COUTURIER_ENV": "production"},
        "PUBSUB_EMULATOR_HOST COUTURIER_ENV",
    ),
    "memory": ({"BROKER_BACKEND": "memory", "COUTURIER_ENV": "production"}, "BROKER_BACKEND COUTURIER_ENV"),
    "memory by URL": (
        {"BROKER_URL": "memory://x", "COUTURIER_ENV": "production"},
        "BROKER_URL COUTURIER_ENV",
    ),
    "any certificate": (
        {"COUTURIER_ENV": "production", **config(enable__ssl__certificate__verification=False)},
        "KAFKA_CLIENT_CONFIG COUTURIER_ENV",
    ),
    "any host name": (
        {"COUTURIER_ENV": "production"}
        | {"KAFKA_SECURITY_PROTOCOL": "SSL"}
        | config(ssl__endpoint__identification__algorithm="none"),
        "KAFKA_CLIENT_CONFIG COUTURIER_ENV",
    ),
    "user without protocol": (
        {"KAFKA_SASL_USERNAME": "bob"},
        "KAFKA_SASL_USERNAME KAFKA_SECURITY_PROTOCOL",
    ),
    "password without SASL": (
        {"KAFKA_SASL_PASSWORD": "hunter2", "KAFKA_SECURITY_PROTOCOL": "SSL"},
        "KAFKA_SASL_PASSWORD KAFKA_SECURITY_PROTOCOL",
    ),
    "password in the JSON without SASL": (
        config(sasl__password="hunter2"),
        "KAFKA_CLIENT_CONFIG KAFKA_SECURITY_PROTOCOL",
    ),
    "authority without TLS": (
        {**PLAIN_LOGIN, "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SSL_CA_LOCATION": "probe"},
        "KAFKA_SSL_CA_LOCATION KAFKA_SECURITY_PROTOCOL",
    ),
    "no mechanism": (
        {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
        "KAFKA_SECURITY_PROTOCOL KAFKA_SASL_MECHANISM",
    ),
    "no user": (
        {name: value for name, value in PLAIN_LOGIN.items() if name != "KAFKA_SASL_USERNAME"},
        "KAFKA_SASL_MECHANISM KAFKA_SASL_USERNAME",
    ),
    "no password": (
        {name: value for name, value in PLAIN_LOGIN.items() if name != "KAFKA_SASL_PASSWORD"},
        "KAFKA_SASL_MECHANISM KAFKA_SASL_PASSWORD",
    ),
    "protocol twice": (
        {**PLAIN_LOGIN, **config(security__protocol="ssl")},
        "KAFKA_SECURITY_PROTOCOL KAFKA_CLIENT_CONFIG",
    ),
    "password twice": (
        {**PLAIN_LOGIN, **config(sasl__password="hunter3")},
        "KAFKA_SASL_PASSWORD KAFKA_CLIENT_CONFIG",
    ),
    "alias": (
        {**PLAIN_LOGIN, **config(sasl__mechanisms="SCRAM-SHA-256")},
        "KAFKA_SASL_MECHANISM KAFKA_CLIENT_CONFIG",
    ),
    "hosts in the JSON": (
        {"KAFKA_BOOTSTRAP_SERVERS": "a:1", **config(bootstrap__servers="b:1")},
        "KAFKA_BOOTSTRAP_SERVERS KAFKA_CLIENT_CONFIG",
    ),
    "hosts in the JSON alone": (
        config(bootstrap__servers="b:1"),
        "KAFKA_BOOTSTRAP_SERVERS KAFKA_CLIENT_CONFIG",
    ),
}


@pytest.mark.parametrize(("variables", "names"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_names_both_variables(
    env: Environment, variables: dict[str, str], names: str
) -> None:
    """It fails at start, and shows no password."""
    if not any(name.startswith("BROKER_") for name in variables):
        variables = {"BROKER_BACKEND": "kafka", **variables}
    env(**variables)
    with pytest.raises(ValueError, match=r"KAFKA|BROKER|PUBSUB") as error:
        broker_url()
    for name in names.split():
        assert name in str(error.value)
    assert "hunter" not in str(error.value)


@pytest.mark.parametrize("backend", ["pubsub", "sqlite", "memory"])
def test_kafka_variables_disturb_no_other_backend(env: Environment, backend: str) -> None:
    """They may belong to another program on the machine, and need not even make sense."""
    env(
        BROKER_BACKEND=backend,
        GOOGLE_CLOUD_PROJECT="my-project",
        KAFKA_SECURITY_PROTOCOL="whatever",
        KAFKA_BOOTSTRAP_SERVERS="http://x",
        KAFKA_SASL_USERNAME="bob",
        KAFKA_CLIENT_CONFIG="{",
    )
    assert broker_url().startswith(f"{backend}:")


def test_the_client_gets_the_login_in_the_clear(env: Environment, tmp_path: Path) -> None:
    """Variables and the JSON become one configuration, by librdkafka's names."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    env(
        **{**PLAIN_LOGIN, "KAFKA_SECURITY_PROTOCOL": "sasl_ssl", "KAFKA_SSL_CA_LOCATION": str(authority)},
        **config(linger__ms=7, client__rack="a", socket__keepalive__enable=True, sasl__mechanisms="plain"),
        KAFKA_BOOTSTRAP_SERVERS="a:1",
    )
    assert kafka_client_config() == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "bob",
        "sasl.password": "hunter2",
        "ssl.ca.location": str(authority),
        "linger.ms": 7,
        "client.rack": "a",
        "socket.keepalive.enable": True,
    }


def test_nothing_set_is_nothing_said(env: Environment) -> None:
    """The client's own defaults hold; empty variables count as not set."""
    env(KAFKA_CLIENT_CONFIG="", KAFKA_SASL_PASSWORD="", PUBSUB_EMULATOR_HOST="", BROKER_CLAIM_CHECK_URL="")
    assert kafka_client_config() == {}
    assert pubsub_emulator_host() is None
    assert claim_check() is None


def test_an_explicit_url_needs_no_valid_broker_url(env: Environment) -> None:
    """``connect("kafka://host")`` takes the login from the environment, and nothing else."""
    env(BROKER_URL="nonsense", BROKER_BACKEND="rabbit", **PLAIN_LOGIN)
    assert kafka_client_config()["sasl.password"] == "hunter2"
    assert pubsub_emulator_host() is None
    assert claim_check() is None


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"BROKER_BACKEND": "rabbit"}, "BROKER_BACKEND='rabbit' 'memory' 'sqlite' 'kafka' 'pubsub'"),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "KAFKA_SECURITY_PROTOCOL='TLS' 'SASL_SSL' 'PLAINTEXT'"),
        ({"KAFKA_SASL_MECHANISM": "AWS_MSK_IAM"}, "KAFKA_SASL_MECHANISM='AWS_MSK_IAM' 'SCRAM-SHA-512'"),
        ({"COUTURIER_ENV": "prod"}, "COUTURIER_ENV='prod' 'production'"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka:http"}, "KAFKA_BOOTSTRAP_SERVERS='kafka:http' 65535"),
        ({"KAFKA_SSL_CA_LOCATION": "/no/ca.pem"}, "KAFKA_SSL_CA_LOCATION='/no/ca.pem' file"),
        ({"BROKER_URL": "kafka://a:0"}, "BROKER_URL='kafka://a:0' 65535"),
        ({"BROKER_URL": "kafka:a:9092"}, "BROKER_URL='kafka:a:9092' slashes"),
        ({"BROKER_URL": "kafka://"}, "BROKER_URL='kafka://' KAFKA_BOOTSTRAP_SERVERS"),
        ({"BROKER_URL": "pubsub://a b"}, "BROKER_URL='pubsub://a project"),
        ({"BROKER_BACKEND": "pubsub"}, "GOOGLE_CLOUD_PROJECT gcloud config set project"),
        (
            {"BROKER_BACKEND": "pubsub", "GOOGLE_CLOUD_PROJECT": "projects/x"},
            "GOOGLE_CLOUD_PROJECT='projects/x' id",
        ),
        (
            {"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": "http://localhost:8085"},
            "PUBSUB_EMULATOR_HOST='http://localhost:8085' scheme",
        ),
        ({"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": "localhost"}, "PUBSUB_EMULATOR_HOST port"),
        ({"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": "a:1,b:1"}, "PUBSUB_EMULATOR_HOST one"),
        (
            {"BROKER_URL": "pubsub://p", "GOOGLE_APPLICATION_CREDENTIALS": "/no/key.json"},
            "GOOGLE_APPLICATION_CREDENTIALS='/no/key.json' file",
        ),
    ],
)
def test_a_value_that_does_not_work_is_shown_beside_what_would(
    env: Environment, variables: dict[str, str], said: str
) -> None:
    """The variable, its value, and the next step, in one line."""
    env(**(variables if "BROKER" in "".join(variables) else {"BROKER_BACKEND": "kafka", **variables}))
    with pytest.raises(ValueError, match=r"[A-Z]") as error:
        broker_url()
    assert type(error.value) is ValueError
    assert "\n" not in str(error.value)
    for part in said.split():
        assert part in str(error.value)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "a week"])
def test_a_retention_is_a_number_of_seconds(env: Environment, seconds: str) -> None:
    """Above 0, and finite."""
    env(BROKER_CLAIM_CHECK_RETENTION=seconds)
    with pytest.raises(ValueError, match=f"BROKER_CLAIM_CHECK_RETENTION='{seconds}'"):
        claim_check()


def test_claims_have_a_place_and_an_age(env: Environment) -> None:
    """Fourteen days, unless said otherwise."""
    env(BROKER_CLAIM_CHECK_URL="file:///srv/claims")
    assert claim_check() == ("file:///srv/claims", 14 * 86_400.0)
    env(BROKER_CLAIM_CHECK_RETENTION="60")
    assert claim_check() == ("file:///srv/claims", 60.0)


@pytest.mark.parametrize("password", ["hunter2", "hu/nter2", "hu?nter2", "hu@nter2", "hu,nter2"])
@pytest.mark.parametrize("scheme", ["kafka", "pubsub"])
def test_credentials_in_a_url_are_refused(env: Environment, scheme: str, password: str) -> None:
    """The error says where they belong, and does not repeat them."""
    url = f"{scheme}://bob:{password}@host:9092"
    belong = "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD" if scheme == "kafka" else "GOOGLE_APPLICATION"
    with pytest.raises(ValueError, match=belong):
        check_url(url)
    env(BROKER_URL=url)
    with pytest.raises(ValueError, match=rf"BROKER_URL.*{belong}") as error:
        broker_url()
    assert "nter2" not in "".join(everything_of(error.value))


def everything_of(error: BaseException) -> list[str]:
    """Return every text that a log could make of an error and of those in its chain."""
    texts = ["".join(traceback.format_exception(error))]
    each: BaseException | None = error
    while each is not None:
        texts += [str(each), repr(each), repr(each.args), repr(vars(each))]
        each = each.__cause__ or each.__context__
    return texts


CANARY = "hunter2"
SECRET_PLACES = {
    "password": {**PLAIN_LOGIN},
    "key password": {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_KEY_PASSWORD": CANARY},
    "JSON": {"KAFKA_SECURITY_PROTOCOL": "SSL", **config(ssl__key__pem=CANARY, ssl__key__password=CANARY)},
    "claim check": {"BROKER_CLAIM_CHECK_URL": f"s3://bob:{CANARY}@bucket"},
    "URL": {"BROKER_URL": f"kafka://bob:{CANARY}@host"},
    "URL of nobody": {"BROKER_URL": f"amqp://bob:{CANARY}@host", "BROKER_BACKEND": "kafka"},
    "hosts": {"KAFKA_BOOTSTRAP_SERVERS": f"bob:{CANARY}@host:9092"},
    "emulator": {"BROKER_BACKEND": "pubsub", "PUBSUB_EMULATOR_HOST": f"bob:{CANARY}@host:9092"},
    "contradicting JSON": {**PLAIN_LOGIN, **config(sasl__password="other")},
    "password without SASL": {"KAFKA_SASL_PASSWORD": CANARY},
    "broken JSON": {"KAFKA_CLIENT_CONFIG": '{"sasl.password": "' + CANARY},
    "wrong beside it": {**PLAIN_LOGIN, "KAFKA_SASL_MECHANISM": "none", "KAFKA_SECURITY_PROTOCOL": "none"},
    "not text": {**PLAIN_LOGIN, "KAFKA_SASL_PASSWORD": CANARY + "\udcff"},
}


@pytest.mark.parametrize("variables", SECRET_PLACES.values(), ids=SECRET_PLACES)
def test_no_text_ever_holds_a_secret(
    env: Environment,
    variables: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither settings nor errors, nor the errors behind those, nor a log, in any form."""
    caplog.set_level(0)
    env(**(variables if "BROKER_URL" in variables else {"BROKER_BACKEND": "kafka"} | variables))
    assert CANARY in "".join(os.environ.values())
    texts: list[str] = []
    for call in (broker_url, pubsub_emulator_host, claim_check, kafka_client_config):
        try:
            call()
        except ValueError as error:
            texts += everything_of(error)
    for model in MODELS:
        try:
            found = model()
        except ValueError as error:
            texts.append(str(error))
        else:
            texts += [repr(found), str(found)]
    texts += [caplog.text, *capsys.readouterr()]
    assert CANARY not in "".join(texts)
