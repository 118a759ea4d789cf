"""``docker-compose.yml`` as Compose resolves it, for checks on machines without Docker.

Knows what the file uses: variables with defaults, ``include``, ``extends`` of a base, YAML anchors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")

Services = dict[str, dict[str, Any]]


def services(environment: Mapping[str, str] | None = None, path: Path = FILE) -> Services:
    """Return the services, with those of the included files.

    Raises:
        FileNotFoundError: a file that is included is not there.
        ValueError: a service is there twice.
    """
    document = _filled(yaml.safe_load(path.read_text()), environment or {})
    found: Services = {}
    for name, service in document["services"].items():
        found[name] = _extended(service, path.parent, environment or {})
    for each in document.get("include", []):
        for name, service in services(environment, path.parent / each).items():
            if name in found:
                raise ValueError(f"{each} has {name}, too")
            found[name] = service
    return found


def variables() -> set[str]:
    """Return the names that any of the files takes from the shell or from ``.env``."""
    texts = [path.read_text() for path in (FILE, *sorted((ROOT / "deploy" / "compose").glob("*.yml")))]
    return {each["name"] for text in texts for each in VARIABLE.finditer(text) if each["name"]}


def _extended(service: dict[str, Any], place: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    base = service.pop("extends", None)
    if base is None:
        return service
    return {**services(environment, place / base["file"])[base["service"]], **service}


def _filled(node: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(each, environment) for each in node]
    if isinstance(node, str):
        return VARIABLE.sub(lambda found: _value(found, environment), node)
    return node


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found["name"] is None:
        return "$"
    return environment.get(found["name"]) or found["default"] or ""
