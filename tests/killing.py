"""An engine killed while a service has requests of its own to answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import wait_until

REQUESTS = 32


def vllm_cores(starters: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The engine processes of vLLM that these have started.

    Known by their title, which now and then they fail to set, or by the worker that they have where there is no GPU.
    """
    cores = []
    for starter in starters:
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = starter.children()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if "EngineCor" in child.name() or child.children():  # the kernel keeps 15 characters of a name
                    cores.append(child)
    return cores


def _rows_in_work(http: httpx.Client) -> float:
    """Of /metrics, for which no busy engine is asked, as /readyz does."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return next(family for family in families if family.name == "rewright_queue_rows").samples[0].value


def kill_under_requests(
    http: httpx.Client, engines: Callable[[], list[psutil.Process]], rewrite: Callable[[int], dict[str, Any]]
) -> None:
    """Kill the only engine under 32 requests: it is replaced, and every request is answered once.

    Args:
        http: client of the service.
        engines: the processes of its engines now.
        rewrite: sends a request of one row called `row <number>`, and returns its record.
    """
    wait_until(lambda: len(engines()) == 1)
    (engine,) = engines()
    with ThreadPoolExecutor(REQUESTS) as pool:
        requests = [pool.submit(rewrite, number) for number in range(REQUESTS)]
        wait_until(lambda: _rows_in_work(http) == REQUESTS)
        engine.kill()
        killed = time.monotonic()
        wait_until(lambda: http.get("/readyz").status_code == 503)
        wait_until(lambda: http.get("/readyz").status_code == 200)
        print(f"an engine answers {time.monotonic() - killed:.1f} s after the other was killed")
        records = [request.result() for request in requests]
        print(f"all {REQUESTS} requests are answered after {time.monotonic() - killed:.1f} s")
    assert [record["id"] for record in records] == [f"row {number}" for number in range(REQUESTS)]
    assert {record["status"] for record in records} <= {"rewritten", "fallback"}
    assert all(record["attempts"] == 1 for record in records)
    assert _rows_in_work(http) == 0
    wait_until(lambda: len(engines()) == 1)
    assert engines()[0].pid != engine.pid
