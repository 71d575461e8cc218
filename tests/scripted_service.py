"""The service over `PlainBackend` in a process of its own, for tests and benchmarks that kill or measure it.

python -m tests.scripted_service --port 8000 --state FOLDER [--pause SECONDS] [--timeout SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque

from server.auth import Keys
from server.local import serve_backend
from server.logs import set_up_logging
from server.settings import JobSettings, LimitSettings, ServerSettings
from tests.plain_backend import PlainBackend

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--pause", type=float, default=0.0, metavar="SECONDS", help="of every row")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="of heads and of bodies")
    parser.add_argument("--database")
    parser.add_argument("--log-file")
    parser.add_argument("--queue-rows", type=int, default=LimitSettings().queue_rows)
    parser.add_argument("--shard-rows", type=int, default=JobSettings().shard_rows)
    arguments = parser.parse_args()
    timeouts = {"head_timeout_s": arguments.timeout, "body_timeout_s": arguments.timeout} if arguments.timeout else {}
    rows = min(LimitSettings().rows, arguments.queue_rows)
    settings = ServerSettings(
        port=arguments.port,
        state=arguments.state,
        database=arguments.database,
        log_file=arguments.log_file,
        limits=LimitSettings(rows=rows, queue_rows=arguments.queue_rows, **timeouts),
        drain_timeout_s=3600,  # a stream that does not end at a stop is to be noticed
        jobs=JobSettings(shard_rows=arguments.shard_rows),
    )
    if arguments.log_file:
        set_up_logging(settings)
    backend = PlainBackend(arguments.pause)
    backend.seen = deque(maxlen=0)  # it would grow with every row, and memory is measured
    asyncio.run(serve_backend(backend, settings, Keys.from_environment(), lambda text: print(text, flush=True)))
