"""Images for a machine that reaches no image registry: ``python -m tests.containers.stand_ins``.

Each bears the name of a public image, has its layout, user and commands, and is made of Debian's packages
(``debootstrap``, as root), Kafka's jars from Maven Central and the Pub/Sub emulator of the installed SDK.
They serve a trial of ``docker-compose.yml`` and nothing else. An image that is there already is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.services import kafka_jars, kafka_server, postgres_server, pubsub_server

PYTHON = "python:3.11-slim-bookworm"
PROMETHEUS = "prom/prometheus:v3.13.3"
_JAVA = "couturier-stand-in/java"
_LABEL = "dev.couturier.stand-in"
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
_APT = "apt-get update -qq && apt-get install -y -qq --no-install-recommends"
_LIMIT_S = 900

_KAFKA_RUN = """#!/bin/bash
set -e
cp='/opt/kafka/libs/*'
export CLUSTER_ID=${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}
said=$(java $KAFKA_HEAP_OPTS -cp "$cp" kafka.docker.KafkaDockerWrapper setup \\
  --default-configs-dir /etc/kafka/docker --mounted-configs-dir /mnt/shared/config \\
  --final-configs-dir /opt/kafka/config 2>&1) \\
  || grep -qi 'already formatted' <<<"$said" || { echo "$said"; exit 1; }
exec java $KAFKA_HEAP_OPTS -XX:+UseSerialGC -Dlog4j2.configurationFile=/etc/kafka/docker/log4j2.properties \\
  -cp "$cp" kafka.Kafka /opt/kafka/config/server.properties
"""
_KAFKA_VERSIONS = """#!/bin/sh
exec java -Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*' \\
  org.apache.kafka.tools.BrokerApiVersionsCommand "$@" >/dev/null
"""
_LOGGING = "Configuration:\n  Appenders: {}\n  Loggers:\n    Root: {level: INFO}\n"
_POSTGRES_RUN = """#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 \\
    --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  rm /tmp/password
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  pg_ctl -o "-c listen_addresses=''" -w start >/dev/null
  createdb --username="$POSTGRES_USER" "$POSTGRES_DB" 2>/dev/null || true
  pg_ctl -m fast -w stop >/dev/null
fi
exec postgres -c listen_addresses='*'
"""
_GCLOUD = """#!/bin/sh
exec /google-cloud-sdk/platform/pubsub-emulator/bin/cloud-pubsub-emulator --host=0.0.0.0 --port=8085
"""


def build_all() -> list[str]:
    """Build what is missing; return the names of all.

    Raises:
        SystemExit: something that it takes is not installed, or a build failed.
    """
    for program in ("docker", "debootstrap"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed (Debian: docker.io, debootstrap)")
    recipes: dict[str, Callable[[Path], str]] = {
        kafka_server.IMAGE: _kafka,
        pubsub_server.IMAGE: _emulator,
        postgres_server.IMAGE: _postgres,
        PROMETHEUS: _prometheus,
    }
    if not _exists(PYTHON):
        _python()
    for name, recipe in {_JAVA: _java, **recipes}.items():
        if _exists(name):
            continue
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "Dockerfile").write_text(recipe(Path(place)))
            _run("docker", "build", "--quiet", "--label", f"{_LABEL}=1", "--tag", name, place)
    return [PYTHON, *recipes]


def _python() -> None:
    """Make Debian with Python, and what this machine trusts."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root))
        for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()  # the public image has none
        shutil.copy(_AUTHORITIES, root / _AUTHORITIES.relative_to("/"))
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        trusted = " ".join(
            f"{name}={_AUTHORITIES}" for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
        )
        change = f"ENV {trusted}"
        _run("docker", "import", "--change", change, "--change", f"LABEL {_LABEL}=1", "-", PYTHON, of=archive)


def _java(_: Path) -> str:
    return f"FROM {PYTHON}\nRUN {_APT} openjdk-17-jre-headless curl && rm -rf /var/lib/apt/lists/*\n"


def _kafka(place: Path) -> str:
    shutil.copytree(kafka_jars.kafka_jars(), place / "libs", ignore=lambda _, names: _but(names, ".jar"))
    (place / "docker").mkdir()
    for name, text in {
        "run": _KAFKA_RUN,
        "kafka-broker-api-versions.sh": _KAFKA_VERSIONS,
        "server.properties": "",
        "log4j2.yaml": _LOGGING,
        "tools-log4j2.yaml": _LOGGING,
        "log4j2.properties": kafka_jars.LOGGING,
    }.items():
        (place / "docker" / name).write_text(text)
        (place / "docker" / name).chmod(0o755)
    return f"""FROM {_JAVA}
RUN useradd --uid 1000 appuser && mkdir -p /opt/kafka/bin /opt/kafka/config /opt/kafka/logs \\
  /mnt/shared/config /var/lib/kafka/data /etc/kafka/secrets
COPY libs /opt/kafka/libs
COPY docker /etc/kafka/docker
RUN cp /etc/kafka/docker/kafka-broker-api-versions.sh /opt/kafka/bin \\
  && chown -R appuser /opt/kafka /var/lib/kafka
USER appuser
VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]
CMD ["/etc/kafka/docker/run"]
"""


def _emulator(place: Path) -> str:
    shutil.copytree(pubsub_server.find_emulator().parents[1], place / "emulator")
    (place / "gcloud").write_text(_GCLOUD)
    (place / "gcloud").chmod(0o755)
    return f"""FROM {_JAVA}
RUN useradd --uid 1000 --create-home cloudsdk
COPY emulator /google-cloud-sdk/platform/pubsub-emulator
COPY gcloud /google-cloud-sdk/bin/gcloud
ENV PATH=/google-cloud-sdk/bin:$PATH
"""


def _postgres(place: Path) -> str:
    (place / "run").write_text(_POSTGRES_RUN)
    (place / "run").chmod(0o755)
    return f"""FROM {PYTHON}
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --home /var/lib/postgresql postgres
RUN {_APT} postgresql && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \\
  && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ \\
  && mkdir -p /var/lib/postgresql/data /var/run/postgresql \\
  && chown postgres:postgres /var/lib/postgresql/data /var/run/postgresql \\
  && chmod 0700 /var/lib/postgresql/data
COPY run /usr/local/bin/run
ENV PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["run"]
"""


def _prometheus(_: Path) -> str:
    return f"""FROM {PYTHON}
RUN {_APT} prometheus wget && rm -rf /var/lib/apt/lists/* /etc/prometheus/* \\
  && mkdir /prometheus && chown 65534:65534 /prometheus
USER 65534
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


def _but(names: list[str], ending: str) -> list[str]:
    return [each for each in names if not each.endswith(ending)]


def _exists(image: str) -> bool:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    return done.returncode == 0


def _run(*command: str, of: subprocess.Popen[bytes] | None = None) -> None:
    """Run a command that must succeed, fed with what another prints."""
    done = subprocess.run(
        command, stdin=of.stdout if of else None, capture_output=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode or (of is not None and of.wait()):
        said = (done.stdout + done.stderr).decode(errors="replace")
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{said[-4000:]}")


if __name__ == "__main__":
    print("\n".join(build_all()))
