"""What can go wrong between a test and its service."""

from __future__ import annotations


class NotInstalledError(Exception):
    """This machine lacks what the service needs; the text names what to install."""


class ServiceError(Exception):
    """The service is here but does not work: it did not start, it died, or a tool of it failed."""
