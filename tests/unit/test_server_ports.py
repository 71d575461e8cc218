"""Ports to listen on."""

from __future__ import annotations

import socket

import pytest

from agent.exceptions import SettingsError
from server.ports import free_port, require_free_port


def test_a_free_port_lies_below_those_that_the_system_and_ray_give_out() -> None:
    found = {free_port() for _ in range(20)}
    assert all(20000 <= port < 32768 for port in found)
    assert len(found) > 1


def test_a_port_that_somebody_listens_on_is_refused_with_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; choose"):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match="Cannot assign requested address; choose another"):
        require_free_port("192.0.2.1", 8000)
