"""The Kubernetes manifests: valid, and true of a worker that really runs."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest
import yaml
from kubernetes_validate import utils as kubernetes
from prometheus_client.parser import text_string_to_metric_families

from broker import Delivery, Message, Watch, connect
from broker.message import utc_now
from worker.observation import Observation
from worker.settings import WorkerSettings

from .commands import Run, env, run
from .services import KafkaService, PubSubService, give_up

__all__ = ["env", "run"]

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = [path.name for path in sorted((ROOT / "deploy/k8s/overlays").iterdir())]
QUEUES = ["kafka", "pubsub"]
VERSIONS = ["1.30", "1.37"]
PATIENCE_S = 60.0
# What closing takes after the drain: the supervisor allows as much.
CLOSING_S = 5
# KEDA's own names: keda.sh/docs/latest/reference/scaledobject-spec, keda.sh/docs/latest/scalers/prometheus.
SCALED_OBJECT = {
    "scaleTargetRef",
    "pollingInterval",
    "minReplicaCount",
    "maxReplicaCount",
    "advanced",
    "triggers",
}
PROMETHEUS = {"serverAddress", "query", "threshold", "ignoreNullValues"}
Manifest = dict[str, Any]


@functools.cache
def built(overlay: str) -> list[Manifest]:
    """What ``kubectl apply -k`` would send."""
    tools = [each for each in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(each[0])]
    if not tools:
        give_up("building the manifests needs kubectl or kustomize: install one of them")
    done = subprocess.run(
        [*tools[0], str(ROOT / "deploy/k8s/overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def named(overlay: str, kind: str, name: str) -> Manifest:
    (found,) = (
        each
        for each in built(overlay)
        if (each["kind"], re.sub(r"-[0-9a-z]{10}$", "", each["metadata"]["name"])) == (kind, name)
    )
    return found


def pods(overlay: str) -> dict[str, Manifest]:
    """Every pod that would run, by the name of what makes it."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in built(overlay)
        if each["kind"] in ("Deployment", "Job")
    }


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def plain(overlay: str, container: Manifest) -> dict[str, str]:
    """The variables of a container that stand in the open."""
    maps = [named(overlay, "ConfigMap", "couturier")["data"] for _ in container.get("envFrom", [])]
    merged = {name: value for each in maps for name, value in each.items()}
    return merged | {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def secret(container: Manifest) -> list[str]:
    """The variables of a container that come from a Secret."""
    return [each["name"] for each in container.get("env", []) if "secretKeyRef" in each.get("valueFrom", {})]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_keep_to_the_schemas_of_kubernetes(overlay: str, version: str) -> None:
    """Strictly: an unknown field is an error. What is not Kubernetes' own is KEDA's, seen below."""
    for each in built(overlay):
        if each["kind"] != "ScaledObject":
            kubernetes.validate(each, version, strict=True)
    wrong = copy.deepcopy(named(overlay, "PodDisruptionBudget", "worker"))
    wrong["spec"]["maxUnavailible"] = wrong["spec"].pop("maxUnavailable")
    with pytest.raises(kubernetes.ValidationError, match="maxUnavailible"):
        kubernetes.validate(wrong, version, strict=True)


@pytest.mark.parametrize("overlay", QUEUES)
def test_the_autoscaler_scales_the_worker(overlay: str) -> None:
    """Made into the autoscaler that KEDA will make, it is valid, and never asks for idle members."""
    found = named(overlay, "ScaledObject", "worker")["spec"]
    (trigger,) = found["triggers"]
    assert (found.keys(), trigger["metadata"].keys()) == (SCALED_OBJECT, PROMETHEUS)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **found["scaleTargetRef"]}
    assert named(overlay, "Deployment", target["name"])
    external = {"metric": {"name": "s0-prometheus"}, "target": {"type": "Value", "value": "30"}}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "worker"},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": found["minReplicaCount"],
            "maxReplicas": found["maxReplicaCount"],
            "behavior": found["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
            "metrics": [{"type": "External", "external": external}],
        },
    }
    kubernetes.validate(scaler, VERSIONS[-1], strict=True)
    arguments = pods(overlay)["topics"]["initContainers"][0]["args"]
    assert found["maxReplicaCount"] <= int(arguments[arguments.index("--partitions") + 1])


def test_every_queue_scales_by_the_same_question() -> None:
    """One signal: whoever changes the broker changes nothing of the scaling."""
    assert named("kafka", "ScaledObject", "worker") == named("pubsub", "ScaledObject", "worker")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_one_of_ours_and_none_contradicts_another(
    overlay: str, run: Run, tmp_path: Path
) -> None:
    """A misspelt variable would be ignored in silence; a password never stands in the open."""
    authority = tmp_path / "ca.crt"
    authority.touch()
    known = {
        each["name"]: each["secret"]
        for each in json.loads(run("config", "show", "--json").stdout)["variables"]
    }
    for pod in pods(overlay).values():
        for container in containers(pod):
            said, hidden = plain(overlay, container), secret(container)
            assert {*said, *hidden} <= known.keys()
            assert not [name for name in said if known[name]]
            whole = said | dict.fromkeys(hidden, "sqlite:///results.db")
            if "KAFKA_SSL_CA_LOCATION" in said:
                mounts = [each["mountPath"] for each in container["volumeMounts"]]
                assert str(Path(said["KAFKA_SSL_CA_LOCATION"]).parent) in mounts
                whole["KAFKA_SSL_CA_LOCATION"] = str(authority)
            done = run("config", "show", **whole)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_locked_down_and_may_finish(overlay: str) -> None:
    """Nobody is root, the image cannot be written to, and SIGKILL comes after the drain."""
    for pod in pods(overlay).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            limits = container["securityContext"]
            assert limits["readOnlyRootFilesystem"]
            assert limits["capabilities"] == {"drop": ["ALL"]}
            assert not limits["allowPrivilegeEscalation"]
            written = Path(plain(overlay, container)["COUTURIER_HOME"])
            assert any(written.is_relative_to(each["mountPath"]) for each in container["volumeMounts"])
            assert container["resources"]["limits"]["memory"]
    worker = pods(overlay)["worker"]
    drain_s = float(plain(overlay, worker["containers"][0])["COUTURIER_DRAIN_TIMEOUT"])
    assert worker["terminationGracePeriodSeconds"] >= drain_s + CLOSING_S


def answer(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=PATIENCE_S) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(arguments: list[str], variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A container's command, as it stands in the manifest."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "couturier", *arguments], env=variables, stdout=output, stderr=output
        )
    try:
        yield process
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.kill()
        process.wait()


def passed(url: str, process: subprocess.Popen[bytes]) -> str:
    """What a probe is answered in the end; the process must not end before."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(URLError):
            code, said = answer(url)
            if code == 200:
                return said
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, f"{url} does not pass"
        time.sleep(0.05)


def metrics(url: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer(url)[1])
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("overlay", "name"), [("kafka", "worker"), ("pubsub", "worker"), ("kafka-gateway", "gateway")]
)
def test_probes_and_scaling_are_answered_by_what_really_runs(
    overlay: str, name: str, request: pytest.FixtureRequest, run: Run, env: dict[str, str], tmp_path: Path
) -> None:
    """The Job's commands, then the container's, with the manifest's variables; only places are the test's."""
    pod = pods(overlay)[name]
    (container,) = pod["containers"]
    said, port = plain(overlay, container), free_port()
    variable = {"worker": "COUTURIER_HTTP_PORT", "gateway": "COUTURIER_GATEWAY_PORT"}[name]
    assert container["ports"] == [{"name": "http", "containerPort": int(said[variable])}]
    login = ("KAFKA_SECURITY_", "KAFKA_SASL_", "KAFKA_SSL_")
    variables = {each: value for each, value in said.items() if not each.startswith(login)}
    variables |= place(overlay, request)
    variables |= {"COUTURIER_TOPIC": f"images-{uuid4().hex[:8]}", variable: str(port)}
    variables |= {"COUTURIER_HOME": str(tmp_path / "home"), "SINK_URL": f"sqlite:///{tmp_path}/results.db"}
    variables |= {each: "a-token-of-a-test" for each in secret(container) if each.endswith("_TOKEN")}
    for each in containers(pods(overlay)["topics"]):
        arguments = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in each["args"]]
        done = run(*arguments, **variables)
        assert done.returncode == 0, done.stderr
    with running(container["args"], {**env, **variables}, tmp_path / "log") as process:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
            path = container[probe]["httpGet"]["path"]
            assert passed(f"http://127.0.0.1:{port}{path}", process) == "ok\n", probe
        if name == "worker":
            query = named(overlay, "ScaledObject", "worker")["spec"]["triggers"][0]["metadata"]["query"]
            wanted = set(re.findall(r"couturier_\w+", query))
            found: dict[str, float] = {}
            while not wanted <= found.keys():  # the first look at the queue follows on the start
                assert process.poll() is None
                found = metrics(f"http://127.0.0.1:{port}/metrics")
            assert {each: found[each] for each in wanted} == {
                "couturier_estimated_drain_seconds": 0.0,
                "couturier_outage": 0.0,
            }
        process.send_signal(signal.SIGTERM)
        assert process.wait(pod["terminationGracePeriodSeconds"]) == 0


def place(overlay: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Where the overlay's broker is in this run; an emulator is no production."""
    if overlay.startswith("kafka"):
        kafka: KafkaService = request.getfixturevalue("kafka_service")
        return {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    emulator: PubSubService = request.getfixturevalue("pubsub_service")
    return {"PUBSUB_EMULATOR_HOST": emulator.host, "COUTURIER_ENV": "development"}


@pytest.mark.anyio
async def test_where_nothing_is_counted_the_wait_of_what_is_held_is_the_signal() -> None:
    """Nothing held is no backlog; one message that failed for an hour is none; a queue that waits is."""
    async with connect("memory://kubernetes") as broker:
        promises = replace(broker.capabilities, counts=False)
    watch = Watch()
    seen = Observation(WorkerSettings(), watch, cast(Any, None), cast(Any, None), promises)
    assert seen.drain_s() == 0.0
    now = utc_now()

    def deliver(waited_s: float) -> Delivery:
        return Delivery(Message(data=b"", time=now - timedelta(seconds=waited_s)), "images", 1, now)

    watch.enter([deliver(1.0), deliver(2.0), deliver(3600.0)], "handling")
    assert seen.drain_s() == pytest.approx(2.0, abs=1.0)
    watch.enter([deliver(90.0) for _ in range(20)], "waiting")
    assert seen.drain_s() == pytest.approx(90.0, abs=1.0)
    watch.held.clear()
    watch.enter([deliver(-5.0)], "handling")  # the publisher's clock is ahead
    assert seen.drain_s() == 0.0
