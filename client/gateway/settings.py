"""The only reader of the gateway's own environment."""

from __future__ import annotations

import re
import socket
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import settings

# Shorter ones can be guessed, at the speed of a loopback.
_TOKEN_CHARACTERS = 16
_TOKEN = re.compile(r"[\x21-\x7e]+")
_BACKLOG = 256
_MAKE_ONE = "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"


class GatewaySettings(BaseSettings):
    """Where the gateway listens, and to whom."""

    model_config = SettingsConfigDict(
        extra="ignore", populate_by_name=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    host: str = Field(
        default="127.0.0.1",
        validation_alias="COUTURIER_GATEWAY_HOST",
        description="where `couturier gateway` listens; anything but this machine alone demands the token",
    )
    port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        validation_alias="COUTURIER_GATEWAY_PORT",
        description="its port; 0 takes any free one, which it prints",
    )
    token: SecretStr | None = Field(
        default=None,
        validation_alias="COUTURIER_GATEWAY_TOKEN",
        description="what clients of the gateway send as `Authorization: Bearer`, at least"
        f" {_TOKEN_CHARACTERS} characters; unset: nothing, on this machine alone",
    )
    max_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1,
        validation_alias="COUTURIER_GATEWAY_MAX_BYTES",
        description="largest image that the gateway takes, bytes; never more than the broker does",
    )

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: SecretStr | None) -> SecretStr | None:
        text = token.get_secret_value() if token else None
        if text is not None and (len(text) < _TOKEN_CHARACTERS or not _TOKEN.fullmatch(text)):
            raise ValueError(
                f"it must have at least {_TOKEN_CHARACTERS} characters, none of them a blank; {_MAKE_ONE}"
            )
        return token

    @property
    def secret(self) -> bytes | None:
        """The token as it travels."""
        return self.token.get_secret_value().encode() if self.token else None


def load(**overrides: Any) -> GatewaySettings:
    """Return the settings of this process; an override that is None leaves the variable its say.

    Raises:
        ValueError: variables have values that do not work; the text names all of them.
    """
    return settings.read(GatewaySettings, **overrides)


def listen(found: GatewaySettings) -> socket.socket:
    """Return a socket that listens where the settings say.

    Raises:
        ValueError: others could reach it, and there is no token; or nobody can listen there.
    """
    import ipaddress

    where = f"COUTURIER_GATEWAY_HOST={found.host!r}"
    try:
        family, _, _, _, address = socket.getaddrinfo(found.host, found.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"{where} is no address of this machine: {error.strerror or error}") from None
    if found.token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ValueError(
            f"{where} can be reached from other machines, and COUTURIER_GATEWAY_TOKEN is not set: anybody"
            f" could send images. Set it ({_MAKE_ONE}), or listen on 127.0.0.1"
        )
    # asyncio turns Nagle's algorithm off only where a socket says TCP: with it each answer would take 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ValueError(
            f"cannot listen on {where} with COUTURIER_GATEWAY_PORT={found.port}: {error.strerror or error};"
            " name another port, or 0 for any that is free"
        ) from error
    return sock
