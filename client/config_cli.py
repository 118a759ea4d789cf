"""The commands ``config show``, ``reference`` and ``example``: every variable, its value, what follows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

# Where settings are, as "module:class"; the front door adds those of packages that this one must not know.
SETTINGS = (
    "broker.settings:BrokerSettings",
    "broker.settings:ClaimCheckSettings",
    "broker.settings:KafkaSettings",
    "broker.settings:PubsubSettings",
    "client.settings:ClientSettings",
    "client.gateway.settings:GatewaySettings",
)

_DOTENV_HEAD = """\
# Copy this file to .env and take away the # where a default does not suit. `docker compose` reads .env
# itself and hands on what docker-compose.yml names; commands take it with
# `uv run --env-file .env couturier ...`. Printed by `couturier config example`.
"""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    Attributes:
        name: as it is exported.
        value: as it may be shown; None: not set, and without a default.
        source: ``environment`` or ``default``.
        secret: its value is never shown.
        read_by: the packages that read it.
        description: what it is for.
    """

    name: str
    value: str | None
    source: str
    secret: bool
    read_by: tuple[str, ...]
    description: str


def register(app: typer.Typer, *settings: str) -> None:
    """Mount the commands under ``config``.

    Args:
        app: the command line.
        settings: further places of settings, as ``module:class``. A module with a function ``check`` or
            ``load`` checks its own variables.
    """
    places = [*SETTINGS, *settings]
    commands = typer.Typer(help="See the configuration, secrets hidden.", no_args_is_help=True)

    @commands.command()
    def show(as_json: Json = False) -> None:
        """Show every variable, secrets hidden.

        With its value, where that comes from, and which broker follows.
        Exits 78 when the configuration does not work, and says why. Connects to nothing.
        """
        _show(places, as_json)

    @commands.command()
    def reference() -> None:
        """Print the variables as a Markdown table."""
        typer.echo(markdown(places), nl=False)

    @commands.command()
    def example() -> None:
        """Print the variables as a .env file in which nothing is set."""
        typer.echo(dotenv(places), nl=False)

    app.add_typer(commands, name="config")


def _show(places: list[str], as_json: bool) -> None:
    """Print the variables and what comes of them.

    Raises:
        ValueError: the configuration does not work; raised after everything is printed.
    """
    from broker.drivers.options import public_url
    from broker.settings import home

    found = variables(places, os.environ)
    url, problem = _outcome(places)
    shown_url = None if url is None else public_url(url)
    if as_json:
        import json

        outcome = {"broker_url": shown_url, "state_directory": str(home()), "error": problem}
        typer.echo(json.dumps({"variables": [asdict(each) for each in found], **outcome}, indent=2))
    else:
        for line in _lines(found):
            typer.echo(line)
        typer.echo(f"\nbroker URL       {_plain(shown_url) if shown_url else 'none, see the error'}")
        typer.echo(f"state directory  {_plain(str(home()))}")
    if problem is not None:
        raise ValueError(problem)


def variables(places: list[str], environment: Mapping[str, str]) -> list[Variable]:
    """Return every variable once, in the order of the places; secrets are masked.

    Args:
        places: settings, as ``module:class``.
        environment: where values are looked up; empty ones count as not set.
    """
    found: dict[str, Variable] = {}
    for package, model, name, field in _fields(places):
        before = found.get(name)
        text = _look_up(name, environment, bool(model.model_config.get("case_sensitive")))
        value = text if text is not None else _default(field)
        secret = _is_secret(name, field)
        found[name] = Variable(
            name=name,
            # One reader may know a default that another leaves open.
            value=before.value if before and before.value is not None else _shown(name, value, secret),
            source="default" if text is None else "environment",
            secret=secret or bool(before and before.secret),
            read_by=tuple(dict.fromkeys((*(before.read_by if before else ()), package))),
            description=before.description if before else field.description or "",
        )
    return list(found.values())


def markdown(places: list[str]) -> str:
    """Return the table of ``docs/configuration.md``; the same on every machine."""
    lines = ["| variable | default | read by | what it is |", "|---|---|---|---|"]
    for each in _everywhere(places):
        default = f"`{each.value}`" if each.value else ""
        what = each.description + (" (secret)" if each.secret else "")
        lines.append(f"| `{each.name}` | {default} | {', '.join(each.read_by)} | {what.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def dotenv(places: list[str]) -> str:
    """Return ``.env.example``: every variable with its default, commented out; the same on every machine."""
    lines = [_DOTENV_HEAD]
    for each in _everywhere(places):
        lines += [f"# {each.description.replace('`', '')}", f"#{each.name}={each.value or ''}", ""]
    return "\n".join(lines)


def _everywhere(places: list[str]) -> Iterator[Variable]:
    """Yield the variables as they are where nothing is set, without this machine's directories."""
    from urllib.parse import quote

    from broker.settings import home

    here = quote(str(home().absolute()))
    for each in variables(places, {}):
        yield replace(each, value=(each.value or "").replace(here, "$COUTURIER_HOME"))


def _fields(places: list[str]) -> Iterator[tuple[str, type[BaseModel], str, FieldInfo]]:
    """Yield package, class, variable and field of every setting."""
    import importlib

    for place in places:
        module, _, class_name = place.partition(":")
        model: type[BaseModel] = getattr(importlib.import_module(module), class_name)
        for name, field in model.model_fields.items():
            alias = field.validation_alias
            yield place.partition(".")[0], model, alias if isinstance(alias, str) else name.upper(), field


def _outcome(places: list[str]) -> tuple[str | None, str | None]:
    """Return the broker's URL, and what does not work; one of them may be None."""
    import importlib

    from broker import connect
    from broker.settings import broker_url, claim_check

    url, problems = None, []
    try:
        url = broker_url()
        connect()
        claim_check()
    except (ValueError, ImportError) as error:
        problems.append(str(error))
    for module in dict.fromkeys(place.partition(":")[0] for place in places):
        package = importlib.import_module(module)
        check = getattr(package, "check", None) or getattr(package, "load", None)
        try:
            if check is not None:
                check()
        except ValueError as error:
            problems.append(str(error))
    # Packages that read the same variable have the same complaint.
    told = [
        one for one in dict.fromkeys(problems) if not any(one != each and one in each for each in problems)
    ]
    return url, "; ".join(told) or None


def _look_up(name: str, environment: Mapping[str, str], case_sensitive: bool) -> str | None:
    """Return what pydantic-settings would read."""
    text = environment.get(name)
    if not text and not case_sensitive:
        text = next((each for key, each in environment.items() if each and key.upper() == name), None)
    return text or None


def _default(field: FieldInfo) -> str | None:
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    return None if value is None else str(value)


def _is_secret(name: str, field: FieldInfo) -> bool:
    from broker.drivers.options import is_secret

    kind = str(field.annotation)
    return "SecretStr" in kind or (is_secret(name) and "Path" not in kind)  # where a secret lies is none


def _shown(name: str, value: str | None, secret: bool) -> str | None:
    from broker.drivers.librdkafka import masked
    from broker.drivers.options import MASK

    from .results import public_urls

    if value is None:
        return None
    if name == "KAFKA_CLIENT_CONFIG":
        return masked(value)  # most keys are no secrets, and worth seeing
    return MASK if secret else public_urls(value)  # SINK_URL may hold several


def _lines(found: list[Variable]) -> Iterator[str]:
    width = max(len(each.name) for each in found)
    for each in found:
        value = "(not set)" if each.value is None else _plain(each.value)
        yield f"{each.source:<11}  {each.name:<{width}}  {value}"


def _plain(text: str) -> str:
    from .display import plain

    return plain(text)
