"""Our application on a Ray cluster that runs already, and that others use too."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from agent.exceptions import SettingsError
from server.deployed import deployed
from server.exceptions import StartError
from server.ports import free_port, require_free_port
from server.run import base_url
from server.settings import RaySettings, ServerSettings


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Answering:
    """Answers every request."""

    async def __call__(self) -> str:
        return "here"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=nodes.address, log_to_driver=False, namespace="rewright")
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def _joining(cluster: Cluster) -> ServerSettings:
    return ServerSettings(port=free_port(), ray=RaySettings(address=cluster.address))


def _answer(server: ServerSettings) -> str:
    return httpx.get(base_url(server), trust_env=False, timeout=60).text


def test_a_service_can_be_stopped_and_started_again(cluster: Cluster) -> None:
    server = _joining(cluster)
    for _ in range(2):
        with deployed(Answering.bind(), server, threading.Event()):
            assert _answer(server) == "here"
            with (
                pytest.raises(StartError, match="a service runs on Ray Serve of this cluster already"),
                deployed(Answering.bind(), server, threading.Event()),
            ):
                pass
            assert _answer(server) == "here", "the one that was there was ended"
        require_free_port(server.host, server.port)


def test_serve_of_others_is_used_where_it_listens_as_we_would_and_left_to_them(cluster: Cluster) -> None:
    server, elsewhere = _joining(cluster), _joining(cluster)
    serve.start(http_options={"host": server.host, "port": server.port})
    try:
        serve.run(Answering.bind(), name="theirs", route_prefix="/theirs")
        with (
            pytest.raises(StartError, match=rf"listens on 127\.0\.0\.1:{server.port}, not on .*:{elsewhere.port}"),
            deployed(Answering.bind(), elsewhere, threading.Event()),
        ):
            pass
        for _ in range(2):
            with deployed(Answering.bind(), server, threading.Event()):
                assert _answer(server) == "here"
        assert list(serve.status().applications) == ["theirs"]
    finally:
        serve.shutdown()


def test_a_port_that_another_program_has_is_said(cluster: Cluster) -> None:
    server = _joining(cluster)
    with (
        socket.create_server((server.host, server.port)),
        pytest.raises(SettingsError, match="cannot listen on"),
        deployed(Answering.bind(), server, threading.Event()),
    ):
        pass
