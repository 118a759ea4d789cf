"""What a source of images yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..schema import ClassifyRequest

Kind = Literal["good", "bad"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A request together with what only its sender knows; that part never travels.

    Attributes:
        request: what is sent.
        label: the true class, or None where nobody knows it.
        kind: ``bad`` for an image that is damaged on purpose.
    """

    request: ClassifyRequest
    label: str | None = None
    kind: Kind = "good"
