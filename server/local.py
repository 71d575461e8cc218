"""The service in one process, for development: uvicorn, and the engine beside the application. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from math import ceil
from types import FrameType

import uvicorn

from agent.assembly import build_gate, open_chat
from agent.models import resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.adapters import AdapterStore
from server.app import Backend, create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.cluster_jobs import Served
from server.connections import timed_heads
from server.hosting import host_engine
from server.logs import set_up_logging
from server.observed import open_tracing
from server.ports import require_free_port
from server.run import Announce, base_url
from server.settings import ServerSettings, require_keys_in_public
from server.work import DurableWork, needs_key

_POLL_S = 0.05


def serve_local(
    model: ModelSettings,
    engine: EngineSettings,
    gate: GateSettings,
    rewrite: RewriteSettings,
    server: ServerSettings,
    announce: Announce,
) -> None:
    """Run the service in this process until SIGINT or SIGTERM, then finish what is in flight and return.

    Raises:
        SettingsError: keys are missing for a public host, or the port is taken.
        StartError: the state folder is in use, or its database cannot be reached.
        ModelError: the model cannot be had.
    """
    set_up_logging(server)
    keys = Keys.from_environment()
    require_keys_in_public(server, has_keys=needs_key(keys, server))
    require_free_port(server.host, server.port)
    asyncio.run(_serve(model, engine, gate, rewrite, server, keys, announce))
    announce("stopped")


async def _serve(
    model: ModelSettings,
    engine_settings: EngineSettings,
    gate: GateSettings,
    rewrite: RewriteSettings,
    server: ServerSettings,
    keys: Keys,
    announce: Announce,
) -> None:
    started = time.monotonic()
    files = resolve_model(model)
    store = AdapterStore(server.adapters, rewrite.adapter, files.name)
    chat = open_chat(files)
    async with contextlib.AsyncExitStack() as opened:
        tracer = None
        if (tracing := open_tracing(server)) is not None:
            opened.push_async_callback(asyncio.to_thread, tracing.close)
            tracer = tracing.tracer
        engine = await host_engine(files, engine_settings, store, server.loaded_adapters)
        opened.push_async_callback(engine.close)
        backend = AgentBackend(engine, chat, build_gate(engine, chat, gate), rewrite, store, tracer)
        opened.push_async_callback(backend.aclose)
        seconds = time.monotonic() - started
        await serve_backend(
            backend,
            server,
            keys,
            lambda ready: announce(f"{ready}; loaded in {seconds:.1f} s"),
            Served(model, gate, rewrite),
        )


async def serve_backend(
    backend: Backend, server: ServerSettings, keys: Keys, announce: Announce, served: Served | None = None
) -> None:
    """Serve `backend` over HTTP, with its jobs, until SIGINT or SIGTERM. Raises StartError."""
    work = DurableWork(server, served)
    app = create_app(backend, server, keys, work)
    http = _UvicornServer(
        uvicorn.Config(
            app,
            host=server.host,
            port=server.port,
            lifespan="off",  # entered here, where its errors arrive
            log_config=None,  # its lines are formatted as ours are
            log_level="warning",
            access_log=False,
            server_header=False,
            http=timed_heads(server.limits.head_timeout_s),
            ws="none",
            timeout_graceful_shutdown=ceil(server.drain_timeout_s),
        ),
        work,
    )
    async with app.router.lifespan_context(app):
        serving = asyncio.create_task(http.serve())
        while not (http.started or serving.done()):
            await asyncio.sleep(_POLL_S)
        announce(f"ready at {base_url(server)}, docs at /docs")
        await serving


class _UvicornServer(uvicorn.Server):
    """Ends with exit code 0 on SIGINT and SIGTERM, where uvicorn would raise the signal again.

    Args:
        config: of uvicorn.
        work: is told of the signal at once; uvicorn waits for its streams of events before it tells anybody.
    """

    def __init__(self, config: uvicorn.Config, work: DurableWork) -> None:
        super().__init__(config)
        self._work = work

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._work.begin_stop()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
