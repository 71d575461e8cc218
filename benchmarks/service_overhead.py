"""What HTTP, Ray Serve and the hop between processes cost: the service against the engine in this process.

    python benchmarks/service_overhead.py --data gsm8k/train.jsonl

Both rewrite the same rows with the same strategy and seeds; the service gets them from the client of `rewright
rewrite --url`. Latency is that of scoring one demonstration while nothing else runs, median. The service runs
without `--local`, started and stopped here; its start is reported, not counted. Prints one JSON line; `ratio` is
rows per second, service over engine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
from report import print_report

from agent.assembly import build_rewriter, open_chat, open_engine
from agent.demonstrations import BadRow, Demonstration
from agent.intake import read_rows
from agent.mismatch import surprisal
from agent.models import resolve_model
from agent.pipeline import rewrite_rows
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from cli.client import RewriteClient, rewrite_rows_remotely
from server.ports import free_port

Rows = list[Demonstration | BadRow]
SCORINGS = 50


async def run_engine(rows: Rows, rewrite: RewriteSettings) -> dict[str, float]:
    """Seconds for all rows and for scoring one, everything in this process."""
    model = resolve_model(ModelSettings())
    chat = open_chat(model)
    engine = await open_engine(model, EngineSettings())
    rewriter = build_rewriter(engine, chat, GateSettings(), rewrite)

    async def rewrite_all(some: Rows) -> None:
        async for _ in rewrite_rows(rewriter, some, model=model.name, concurrency=rewrite.concurrency):
            pass

    async def score_one() -> None:
        row = _demonstration(rows)
        await surprisal(engine, chat, row.prompt, row.expert)

    try:
        await rewrite_all(rows[:1])
        started = time.perf_counter()
        await rewrite_all(rows)
        seconds = time.perf_counter() - started
        latencies = []
        for _ in range(SCORINGS):
            started = time.perf_counter()
            await score_one()
            latencies.append(time.perf_counter() - started)
    finally:
        await rewriter.aclose()
        await engine.close()
    return {"seconds": seconds, "score_latency_ms": 1000 * statistics.median(latencies)}


async def run_service(rows: Rows, url: str, model: str) -> dict[str, float]:
    """The same through the service at `url`."""
    async with (
        RewriteClient(url, None, {}, patience_s=60) as client,
        httpx.AsyncClient(base_url=url, timeout=None) as http,
    ):

        async def rewrite_all(some: Rows) -> None:
            async for _ in rewrite_rows_remotely(client, some, model=model):
                pass

        await rewrite_all(rows[:1])
        started = time.perf_counter()
        await rewrite_all(rows)
        seconds = time.perf_counter() - started
        body = {"demonstrations": [_demonstration(rows).source]}
        latencies = []
        for _ in range(SCORINGS):
            started = time.perf_counter()
            (await http.post("/v1/mismatch", json=body)).raise_for_status()
            latencies.append(time.perf_counter() - started)
    return {"seconds": seconds, "score_latency_ms": 1000 * statistics.median(latencies)}


@contextmanager
def running_service(settings: Mapping[str, str], *flags: str) -> Iterator[str]:
    """Within: `rewright serve` on a free port of this machine, with settings as its environment has them."""
    port = free_port()
    state = tempfile.TemporaryDirectory()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", "--port", str(port), *flags],
        env={**os.environ, **settings, "REWRIGHT_SERVER__STATE": state.name},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "ready at" in line:
                yield f"http://127.0.0.1:{port}"
                return
        raise SystemExit("the service did not start; run `rewright serve` to see why")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
        state.cleanup()


def _demonstration(rows: Rows) -> Demonstration:
    return next(row for row in rows if isinstance(row, Demonstration))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--strategy", default="default")
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args()

    rewrite = RewriteSettings(strategy=options.strategy, max_tokens=options.max_tokens)
    rows = list(islice(read_rows(options.data), options.rows))
    engine = asyncio.run(run_engine(rows, rewrite))
    started = time.perf_counter()
    settings = {"REWRIGHT_REWRITE__STRATEGY": rewrite.strategy, "REWRIGHT_REWRITE__MAX_TOKENS": str(rewrite.max_tokens)}
    with running_service(settings) as url:
        start_s = time.perf_counter() - started
        service = asyncio.run(run_service(rows, url, ModelSettings().name))
    for result in (engine, service):
        result["rows_per_s"] = len(rows) / result["seconds"]
    report = {
        "benchmark": "service_overhead",
        "rows": len(rows),
        "strategy": options.strategy,
        "service_start_s": start_s,
        "engine": engine,
        "service": service,
        "ratio": service["rows_per_s"] / engine["rows_per_s"],
        "overhead_ms": service["score_latency_ms"] - engine["score_latency_ms"],
    }
    print_report(report)


if __name__ == "__main__":
    main()
