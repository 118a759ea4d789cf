"""Apache Kafka's broker and tools as jars from Maven Central, once per user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .engines import tied
from .errors import NotInstalledError

KAFKA_VERSION = "4.3.1"
MAVEN_LIMIT_S = 300.0
# kafka-tools are the console clients; without the slf4j binding the broker logs nothing; Connect is left out.
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>couturier</groupId><artifactId>tests</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{KAFKA_VERSION}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId>
<version>{KAFKA_VERSION}</version>
<exclusions><exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId></exclusion>
</exclusions></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
<version>2.25.4</version></dependency>
</dependencies></project>
"""
LOGGING = """status=error
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c: %m%n
"""


def cache_directory() -> Path:
    """Return where this user's jars are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "couturier-tests" / f"kafka-{KAFKA_VERSION}"


def kafka_jars() -> Path:
    """Return the directory of the jars and ``log4j2.properties``, downloaded (50 MB) when absent.

    Raises:
        NotInstalledError: no ``java``; or no jars and no ``mvn``, or Maven Central cannot be reached.
    """
    if shutil.which("java") is None:
        raise NotInstalledError("Java is not installed (Debian: default-jre-headless, at least Java 17)")
    libs = cache_directory()
    if libs.is_dir():
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise NotInstalledError(
            f"Maven, which downloads Kafka {KAFKA_VERSION}, is not installed (Debian: maven)"
        )
    libs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{libs.name}-", dir=libs.parent) as scratch:
        project = Path(scratch)
        (project / "pom.xml").write_text(POM)
        command = [maven, "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            tied([*command, "-DoutputDirectory=libs"]),
            cwd=project,
            capture_output=True,
            text=True,
            timeout=MAVEN_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            raise NotInstalledError(
                f"Maven cannot download Kafka {KAFKA_VERSION}: {done.stdout.strip()[-500:]}"
            )
        (project / "libs" / "log4j2.properties").write_text(LOGGING)
        try:
            (project / "libs").rename(libs)
        except OSError:
            if not libs.is_dir():  # else another run was first
                raise
    return libs


def java(libs: Path, main_class: str, *args: str | Path, heap: str = "256m") -> list[str]:
    """Return the command that runs one of Kafka's main classes.

    Args:
        libs: what ``kafka_jars`` returned.
        main_class: its full name.
        args: its arguments.
        heap: the most memory for its objects, as ``-Xmx`` takes it.
    """
    flags = ["-XX:+UseSerialGC", f"-Xmx{heap}", f"-Dlog4j2.configurationFile={libs / 'log4j2.properties'}"]
    if main_class != "kafka.Kafka":
        flags.append("-XX:TieredStopAtLevel=1")  # a tool ends before the second compiler pays
    return ["java", *flags, "-cp", f"{libs}/*", main_class, *map(str, args)]
