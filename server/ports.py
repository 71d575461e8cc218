"""Ports to listen on: whether one is free, and finding one that nobody takes before the service does."""

from __future__ import annotations

import random
import socket

from agent.exceptions import SettingsError

# Systems hand out 32768 and above, and so does Ray for its own processes; Ray's workers have 10002 to 19999. A free
# port of theirs may be taken between the moment it is found and the moment it is used.
_QUIET_PORTS = range(20000, 32768)
_TRIES = 100


def require_free_port(host: str, port: int) -> None:
    """Raises SettingsError when host and port cannot be bound to."""
    if error := _refusal(host, port):
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}; choose another server.port") from error


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that is free, and that neither the system nor Ray gives to anyone by itself.

    Raises:
        SettingsError: none was found.
    """
    for port in random.sample(_QUIET_PORTS, _TRIES):
        if _refusal(host, port) is None:
            return port
    between = f"{_QUIET_PORTS.start} and {_QUIET_PORTS.stop - 1}"
    raise SettingsError(f"no free port found on {host} between {between}; close what listens there")


def _refusal(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
