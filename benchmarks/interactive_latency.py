"""How long one demonstration takes while a job on a whole file keeps the engine busy, against an idle engine.

    python benchmarks/interactive_latency.py --data gsm8k/train.jsonl

The same requests of one demonstration each, one after the other, three times: alone; beside a `rewrite` job; and beside
as many rows as such a job has under way, sent as requests like any other, so that nothing gives way to anything. The
last is what a service without two kinds of work does. Rows per second are those of the bulk work meanwhile. Prints one
JSON line; the ratios are medians over that alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from report import print_report
from service_overhead import running_service

from agent.demonstrations import Demonstration
from agent.intake import read_rows
from cli.jobs_client import JobsClient
from server.settings import JobSettings

POLL_S = 0.2
BULK_ROWS = JobSettings().rows
JOB_ROWS = 20_000  # more than it can do meanwhile


class Service:
    """Asks the service at `url` for rewrites of `rows`, in turn."""

    def __init__(self, url: str, rows: list[dict[str, Any]]) -> None:
        self.url, self._rows = url, rows
        self._http = httpx.AsyncClient(base_url=url, timeout=None)

    async def rewrite(self, number: int) -> float:
        """Seconds that one demonstration takes."""
        body = {"demonstrations": [self._rows[number % len(self._rows)]]}
        started = time.perf_counter()
        (await self._http.post("/v1/rewrites", json=body)).raise_for_status()
        return time.perf_counter() - started

    async def figure(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = (await self._http.get("/metrics")).raise_for_status().text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    async def busy(self, rows: int) -> None:
        """Return when so many demonstrations are in the house."""
        while await self.figure("rewright_queue_rows") < rows:
            await asyncio.sleep(POLL_S)

    async def idle(self) -> None:
        """Return when there are none."""
        while await self.figure("rewright_queue_rows"):
            await asyncio.sleep(POLL_S)

    async def measure(self, requests: int) -> dict[str, float]:
        """Latency of requests one after the other, and what else was done meanwhile."""
        rows, started = await self.figure("rewright_rows_total"), time.perf_counter()
        seconds = [await self.rewrite(number) for number in range(requests)]
        others = await self.figure("rewright_rows_total") - rows - requests
        return {
            "median_s": statistics.median(seconds),
            "max_s": max(seconds),
            "bulk_rows_per_s": others / (time.perf_counter() - started),
        }


@contextmanager
def job(service: Service, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Within: the service does a job on these rows, over and over."""
    with tempfile.TemporaryDirectory() as folder, JobsClient(service.url, None, patience_s=60) as client:
        source = Path(folder, "rows.jsonl")
        with source.open("w") as file:
            for number, row in enumerate(islice(itertools.cycle(rows), JOB_ROWS)):
                file.write(f"{json.dumps({**row, 'id': f'bulk-{number}'})}\n")
        job_id = client.submit(client.upload(source)["id"], {})["id"]
        try:
            yield
        finally:
            client.cancel(job_id)


async def compare(url: str, rows: list[dict[str, Any]], requests: int) -> dict[str, dict[str, float]]:
    """The three measurements."""
    service, others = Service(url, rows[:requests]), Service(url, rows[requests:])
    await service.rewrite(0)
    alone = await service.measure(requests)
    with job(service, rows[requests:]):
        await service.busy(BULK_ROWS)
        beside_job = await service.measure(requests)
    await service.idle()
    numbers = itertools.count()

    async def send() -> None:
        while True:
            await others.rewrite(next(numbers))

    senders = [asyncio.create_task(send()) for _ in range(BULK_ROWS)]
    await service.busy(BULK_ROWS)
    beside_equals = await service.measure(requests)
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)
    return {"alone": alone, "beside_job": beside_job, "beside_equals": beside_equals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--requests", type=int, default=10, help="of each measurement")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--local", action="store_true", help="a service without Ray")
    options = parser.parse_args()

    read = read_rows(options.data, limit=options.requests + 200)
    rows = [row.source for row in read if isinstance(row, Demonstration)]
    settings = {"REWRIGHT_REWRITE__MAX_TOKENS": str(options.max_tokens)}
    with running_service(settings, *(["--local"] if options.local else [])) as url:
        measured = asyncio.run(compare(url, rows, options.requests))
    alone = measured["alone"]["median_s"]
    report = {
        "benchmark": "interactive_latency",
        "requests": options.requests,
        "bulk_rows": BULK_ROWS,
        **measured,
        "ratio": measured["beside_job"]["median_s"] / alone,
        "ratio_without_priority": measured["beside_equals"]["median_s"] / alone,
    }
    print_report(report)


if __name__ == "__main__":
    main()
