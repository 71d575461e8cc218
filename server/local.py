"""The service in one process, for development: uvicorn, and the engine beside the application. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from math import ceil

import uvicorn

from agent.assembly import build_gate, open_chat
from agent.models import resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.adapters import AdapterStore
from server.app import create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.hosting import host_engine
from server.run import Announce, base_url, require_free_port
from server.settings import ServerSettings, require_keys_in_public

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
        ModelError: the model cannot be had.
    """
    keys = Keys.from_environment()
    require_keys_in_public(server, has_keys=bool(keys))
    require_free_port(server)
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
    engine = await host_engine(files, engine_settings, store, server.loaded_adapters)
    chat = open_chat(files)
    backend = AgentBackend(engine, chat, build_gate(engine, chat, gate), rewrite, store)
    try:
        http = _UvicornServer(
            uvicorn.Config(
                create_app(backend, server, keys),
                host=server.host,
                port=server.port,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=ceil(server.drain_timeout_s),
            )
        )
        serving = asyncio.create_task(http.serve())
        while not (http.started or serving.done()):
            await asyncio.sleep(_POLL_S)
        announce(f"ready at {base_url(server)} after {time.monotonic() - started:.1f} s; docs at /docs")
        await serving
    finally:
        await backend.aclose()
        await engine.close()


class _UvicornServer(uvicorn.Server):
    """Ends with exit code 0 on SIGINT and SIGTERM, where uvicorn would raise the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
