"""The engine of a command that works in this process: model fetched, loaded, and closed at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.assembly import open_chat, open_engine
from agent.chat import ChatFormat
from agent.engine import Engine
from agent.models import resolve_model
from cli.console import fetching
from cli.settings import Settings


@asynccontextmanager
async def engine_of(settings: Settings) -> AsyncIterator[tuple[Engine, ChatFormat]]:
    """Within: the engine of the settings and its chat format.

    Raises:
        ModelError: the model cannot be had, or is not supported.
    """
    with fetching(settings.model.name) as on_progress:
        files = resolve_model(settings.model, on_progress=on_progress)
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights being loaded, seconds at most
    engine = await open_engine(files, settings.engine)
    try:
        yield engine, open_chat(files)
    finally:
        await engine.close()
