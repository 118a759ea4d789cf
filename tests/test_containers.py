"""What the image and the compose files promise; ``-m campaign`` brings them up for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.config_cli import SETTINGS, dotenv, variables
from worker.http import Server
from worker.settings import WorkerSettings

from .containers import compose, stand_ins, trial
from .services import kafka_server, postgres_server, pubsub_server

ROOT = compose.ROOT
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PLACES = [*SETTINGS, "worker.settings:WorkerSettings"]
BACKENDS = {"kafka": kafka_server.IMAGE, "pubsub": pubsub_server.IMAGE}
EVERY = {backend: compose.services({"BROKER_BACKEND": backend}) for backend in BACKENDS}
CASES = [(backend, name) for backend, found in EVERY.items() for name in found]
# The rest runs as the user that its image names, which is none of root's.
ROOT_IMAGES = {postgres_server.IMAGE, pubsub_server.IMAGE}
OURS = {"worker", "client", "topics"}
ONE_SHOTS = {"topics", "client"}
# Settings of commands that the stack does not run, and logins that its Kafka does not want.
ELSEWHERE = ("CATALOGUE_", "COUTURIER_GATEWAY_", "KAFKA_SASL_", "KAFKA_SSL_")
# What no container of the stack gets, and why.
LEFT_OUT = {
    **dict.fromkeys(("COUTURIER_ENV", "BROKER_URL"), "the stack's broker is its own, and for development"),
    **dict.fromkeys(
        ("BROKER_CLAIM_CHECK_URL", "BROKER_CLAIM_CHECK_RETENTION"), "needs storage that all share"
    ),
    **dict.fromkeys(("GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS"), "there is the emulator"),
    **dict.fromkeys(("KAFKA_SECURITY_PROTOCOL", "KAFKA_CLIENT_CONFIG"), "its Kafka asks for no login"),
    "COUTURIER_HOME": "the image's",
    "COUTURIER_UNTIL_STDIN_CLOSES": "a container has no standard input",
}


def seconds(text: str) -> float:
    """Read a duration as Compose writes it."""
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found, text
    return int(found[1]) * (60 if found[2] == "m" else 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_variable_switches_broker_workers_and_client(backend: str) -> None:
    """Nothing else needs to be said, and without it there is Kafka."""
    found = EVERY[backend]
    assert found["broker"]["image"] == BACKENDS[backend]
    for name in OURS:
        said = found[name]["environment"]
        assert said["BROKER_BACKEND"] == backend
        address = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "pubsub": "PUBSUB_EMULATOR_HOST"}[backend]
        assert said[address].startswith("broker:")
    if backend == "kafka":
        assert compose.services() == compose.services({"BROKER_BACKEND": ""}) == found
        listeners = found["broker"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        assert said["KAFKA_BOOTSTRAP_SERVERS"] in listeners
    assert EVERY["kafka"].keys() - EVERY["pubsub"].keys() == {"ui"}


def test_a_backend_without_a_server_is_refused() -> None:
    """`BROKER_BACKEND=sqlite` in the shell does not start half a stack."""
    with pytest.raises(FileNotFoundError, match=r"sqlite\.yml"):
        compose.services({"BROKER_BACKEND": "sqlite"})


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_every_container_is_confined(backend: str, name: str) -> None:
    """No capability, no way to get one, nothing to write to but what is named, and a limit on all of it."""
    service = EVERY[backend][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["init"] is True
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert 0 < service["pids_limit"] <= 512
    assert service["logging"]["options"]["max-size"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
    assert all("size=" in each for each in service.get("tmpfs", []))
    assert not any(str(each).startswith(("/", "~")) for each in service.get("volumes", []))
    if service["image"] in ROOT_IMAGES:
        user, group = service["user"].split(":")
        assert int(user) > 0
        assert int(group) > 0
    else:
        assert "user" not in service


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_ports_are_open_to_this_machine_only(backend: str, name: str) -> None:
    """And what may be there many times has neither a port nor a name of its own."""
    service = EVERY[backend][name]
    assert "container_name" not in service
    assert "hostname" not in service
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    if name in OURS:
        assert "ports" not in service


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_nothing_starts_before_what_it_needs_is_healthy(backend: str, name: str) -> None:
    """A server is waited for until it answers, a one-shot until it has succeeded."""
    found = EVERY[backend]
    service = found[name]
    if name in ONE_SHOTS:
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["restart"] == "unless-stopped"
        check = service["healthcheck"]
        assert check["test"][0] == "CMD"
        assert seconds(check["timeout"]) <= seconds(check["interval"]) * check["retries"]
    for needed, how in service.get("depends_on", {}).items():
        expected = "service_completed_successfully" if needed in ONE_SHOTS else "service_healthy"
        assert how == {"condition": expected}, needed
        assert set(found[needed].get("profiles", [])) <= set(service.get("profiles", []))
    if name in OURS:
        assert "broker" in service["depends_on"]
    if name in OURS - {"topics"}:
        assert {"topics", "postgres"} <= service["depends_on"].keys()


@pytest.mark.parametrize("backend", BACKENDS)
def test_public_images_are_pinned_and_those_that_the_tests_run_on(backend: str) -> None:
    """A new version is a change of this repository."""
    images = {name: each["image"] for name, each in EVERY[backend].items() if name not in OURS}
    assert images["postgres"] == postgres_server.IMAGE
    assert images["prometheus"] == stand_ins.PROMETHEUS
    for name, image in images.items():
        tag = image.rpartition(":")[2]
        # Google names no version of this image that has a tag of its own for good.
        assert re.match(r"v?\d+", tag) or image == pubsub_server.IMAGE, name
    assert {EVERY[backend][name]["image"] for name in OURS} == {"couturier:latest"}
    assert {EVERY[backend][name]["build"]["target"] for name in OURS} == {"worker"}


def test_a_worker_may_finish_before_it_is_killed() -> None:
    """The drain has its time, and some is left to say goodbye."""
    worker = EVERY["kafka"]["worker"]
    drain_s = float(worker["environment"]["COUTURIER_DRAIN_TIMEOUT"])
    assert drain_s == WorkerSettings.model_fields["drain_timeout_s"].default
    assert seconds(worker["stop_grace_period"]) >= drain_s + 10


def test_containers_know_every_setting_that_there_is() -> None:
    """Each variable is fixed, handed on from the shell, or left out for a reason; none is misspelt."""
    said = EVERY["kafka"]["worker"]["environment"]
    known = {each.name for each in variables(PLACES, {})}
    assert {each for each in known - said.keys() if not each.startswith(ELSEWHERE)} == LEFT_OUT.keys()
    assert said.keys() - known == {"PGPASSWORD", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert all(EVERY["kafka"][name]["environment"] == said for name in OURS)
    # No file of variables: the Kafka image would read the clients' KAFKA_..., too.
    assert not any("env_file" in each for each in EVERY["kafka"].values())


def test_every_variable_of_the_stack_is_documented() -> None:
    """Those that are no settings of ours are in docs/containers.md."""
    page = (ROOT / "docs" / "containers.md").read_text()
    known = {each.name for each in variables(PLACES, {})}
    for name in compose.variables() - known:
        assert f"| `{name}` |" in page, name


def test_topics_have_partitions_for_a_dozen_workers() -> None:
    """More members than partitions would have nothing to do."""
    script = EVERY["kafka"]["topics"]["entrypoint"][-1]
    assert '"$COUTURIER_TOPIC" --group "$COUTURIER_GROUP" --partitions 12\n' in script
    assert '"$COUTURIER_TOPIC.$COUTURIER_GROUP.dlq" --group operators\n' in script


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_what_is_mounted_is_there(backend: str, name: str) -> None:
    """Docker would make an empty directory of a path that is not; files are mounted read-only."""
    for volume in EVERY[backend][name].get("volumes", []):
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert mode == ["ro"]
            assert any((ROOT / source).iterdir()), source
        else:
            assert target.startswith("/")


def test_prometheus_and_grafana_find_the_workers() -> None:
    """Names, ports and paths in their files are those of the stack."""
    found = EVERY["kafka"]
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (workers,) = [each for scrape in scrapes for each in scrape.get("dns_sd_configs", [])]
    assert workers["names"] == ["worker"]
    assert workers["type"] == "A"
    assert [str(workers["port"])] == found["worker"]["expose"]
    assert workers["port"] == found["worker"]["environment"]["COUTURIER_HTTP_PORT"]
    grafana = found["grafana"]
    given = ROOT / "deploy/compose/grafana"
    (source,) = yaml.safe_load((given / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((given / "dashboards/couturier.yml").read_text())["providers"]
    mounts = dict(each.split(":")[1::-1] for each in grafana["volumes"])
    dashboards = ROOT / mounts[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (dashboards / home.name).is_file()


def test_the_image_is_small_and_nobody_in_it_is_root() -> None:
    """No torch in the default target, a number as user, commands that get signals, both health checks."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    names = {stage.split("\n")[0].partition(" AS ")[2]: stage for stage in stages}
    assert stages[-1].split() == ["worker"]
    assert names["base"].split()[0] == stand_ins.PYTHON
    for target in ("worker", "train"):
        assert "USER 10001:10001" in names[target]
        assert 'ENTRYPOINT ["couturier"]' in names[target]
    assert "--extra train" not in names["build"] + names["build-worker"] + names["worker"]
    assert "--extra train" in names["build-train"]
    assert '"/livez"]' in names["worker"]
    assert EVERY["kafka"]["worker"]["healthcheck"]["test"][-1] == "/readyz"
    assert not re.search(r"^(RUN|CMD|ENTRYPOINT) .*(password|token|secret)", DOCKERFILE, re.I | re.M)
    for line in re.findall(r"uv sync .*", DOCKERFILE):
        assert "--locked --no-dev" in line


def test_the_image_is_made_of_what_it_needs_and_nothing_else() -> None:
    """A list of what goes in, so that no `.env`, key or history ever does."""
    first, *rest = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    assert first == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    assert all((ROOT / each).exists() for each in let_in)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel: dict[str, Any] = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert let_in == {*wheel["only-include"], "pyproject.toml", "uv.lock", "README.md", "LICENSE"} | set(
        re.findall(r"^COPY (deploy/\S+)", DOCKERFILE, re.MULTILINE)
    )


@pytest.mark.parametrize(("code", "ends"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_says_what_the_worker_says(code: int | None, ends: int) -> None:
    """Healthy, not healthy, or not there; a proxy in the environment is not asked."""
    server = Server("127.0.0.1", 0, {"/readyz": lambda _: (code or 200, "text/plain", b"so\n")})
    try:
        port = server.server_address[1]
        if code is None:
            server.close()
        done = subprocess.run(
            [sys.executable, "-IS", str(ROOT / "deploy/compose/probe.py"), "/readyz"],
            env={"COUTURIER_HTTP_PORT": str(port), "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        if code is not None:
            server.close()
    assert done.returncode == ends, done.stderr
    assert done.stdout == ("" if code is None else "so\n")


def test_the_example_of_an_environment_is_what_the_settings_say() -> None:
    """To mend it: ``couturier config example > .env.example``."""
    assert (ROOT / ".env.example").read_text() == dotenv(PLACES)


def test_the_example_sets_nothing_and_shows_no_secret(tmp_path: Path) -> None:
    """Copied as it is, it changes nothing; the same text on every machine."""
    text = dotenv(PLACES)
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]
    assert "#COUTURIER_TOPIC=images\n" in text
    assert "#KAFKA_SASL_PASSWORD=\n" in text
    assert str(Path.home()) not in text
    elsewhere = {
        **os.environ,
        "COUTURIER_HOME": str(tmp_path),
        "COUTURIER_TOPIC": "other",
        "SINK_URL": "console:",
    }
    done = subprocess.run(
        [sys.executable, "-m", "couturier", "config", "example"],
        env=elsewhere,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == text


@pytest.mark.campaign
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stack_serves_and_loses_nothing(backend: str) -> None:
    """With a Docker Engine, and images from a registry or from ``python -m tests.containers.stand_ins``."""
    found = trial.run(backend)
    assert found["rows"] == trial.IMAGES
    assert found["held_when_killed"] > 0
    assert found["lost"] == 0
