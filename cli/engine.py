"""The engine of a command that works in this process: model fetched, loaded, and closed at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.assembly import open_chat, open_engine
from agent.chat import ChatFormat
from agent.engine import LocalEngine
from agent.models import ModelFiles, resolve_model
from agent.settings import ModelSettings
from cli.console import fetching
from cli.settings import Settings


def fetch_model(model: ModelSettings) -> ModelFiles:
    """Files of a model; where they must be fetched, with the progress shown. Raises ModelError."""
    with fetching(model.name) as on_progress:
        return resolve_model(model, on_progress=on_progress)


@asynccontextmanager
async def engine_of(settings: Settings) -> AsyncIterator[tuple[LocalEngine, ChatFormat]]:
    """Within: the engine of the settings and its chat format.

    Raises:
        ModelError: the model cannot be had, or is not supported.
    """
    files = fetch_model(settings.model)
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights being loaded, seconds at most
    engine = await open_engine(files, settings.engine)
    try:
        yield engine, open_chat(files)
    finally:
        await engine.close()
