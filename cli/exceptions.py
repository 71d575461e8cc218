"""Errors of the command line's own."""

from __future__ import annotations

from agent.exceptions import RewrightError


class ServiceError(RewrightError, ConnectionError):
    """The service behind --url cannot be reached, or does not do what it was asked."""

    may_pass = True


class RefusedError(ServiceError):
    """The service refuses what it was asked, and would do so again: unknown names, a wrong key, what it cannot read."""

    may_pass = False


class UsageError(RewrightError, ValueError):
    """Arguments that exclude each other, or a file that would be overwritten."""
