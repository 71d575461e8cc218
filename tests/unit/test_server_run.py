"""What the service asks of a cluster before it starts."""

from __future__ import annotations

import pytest

from server.run import _missing_resources
from server.settings import RaySettings


@pytest.mark.parametrize(
    ("available", "said"),
    [
        ({"CPU": 3.0, "GPU": 1.5}, ""),
        ({"CPU": 2.5, "GPU": 1.5}, "3 engines with 1 CPUs each need 3, and the Ray cluster has 2.5"),
        ({"CPU": 3.0, "GPU": 1.0}, "3 engines with 0.5 GPUs each need 1.5, and the Ray cluster has 1"),
        ({"CPU": 3.0}, "3 engines with 0.5 GPUs each need 1.5, and the Ray cluster has 0"),
        ({}, "3 engines with 1 CPUs each need 3, and the Ray cluster has 0"),
    ],
)
def test_what_a_cluster_lacks_for_the_engines_is_said(available: dict[str, float], said: str) -> None:
    assert _missing_resources(RaySettings(engine_replicas=3, engine_gpus=0.5), available) == said
