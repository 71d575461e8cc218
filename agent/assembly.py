"""Putting the parts together: settings in; a chat format, an engine, a rewriter out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from agent.adapters import open_adapter
from agent.chat import ChatFormat
from agent.engine import Engine, LocalEngine
from agent.exceptions import ModelError
from agent.gate import Gate
from agent.gate.reasoning import ReasoningJudge
from agent.models import ModelFiles
from agent.rewriter import Rewriter
from agent.settings import EngineSettings, GateSettings, RewriteSettings
from agent.strategies import find_strategy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_chat(model: ModelFiles) -> ChatFormat:
    """The chat format of a model. Raises ModelError when its tokenizer cannot be loaded or has no template."""
    return ChatFormat(_load_tokenizer(model))


def _load_tokenizer(model: ModelFiles) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.path, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer of {model.name} cannot be loaded from {model.path}: {error}") from error
    return tokenizer


async def open_engine(model: ModelFiles, settings: EngineSettings) -> LocalEngine:
    """Load the model and start its engine; seconds for a small one, half a minute and more with vLLM.

    Raises:
        ModelError: the model is not supported, or the engine asked for is not installed.
    """
    return await asyncio.to_thread(_load_engine, model, settings)


def _load_engine(model: ModelFiles, settings: EngineSettings) -> LocalEngine:
    chat = open_chat(model)
    if settings.kind == "vllm":
        from agent.engine.vllm_start import start_vllm

        return start_vllm(model.name, model.path, chat.tokenizer, chat.stop_ids, settings)
    from agent.engine.transformers_engine import TransformersEngine

    return TransformersEngine(model.name, model.path, chat.tokenizer, chat.stop_ids, settings)


async def load_adapter(engine: LocalEngine, path: Path, base: ModelFiles) -> str:
    """Check an adapter folder, load it, and return the name that requests and records use.

    Args:
        engine: runs `base`.
        path: see `open_adapter`.
        base: the base model, whose weights the adapter must have been trained on.

    Raises:
        AdapterError: it is malformed or belongs to another base model.
    """
    adapter = await asyncio.to_thread(open_adapter, path, base.name, base=base.path)
    await engine.load_adapter(adapter.name, adapter.path)
    return adapter.name


def build_gate(engine: Engine, chat: ChatFormat, settings: GateSettings) -> Gate:
    """The gate, with the engine's own model as reasoning judge when the settings ask for one."""
    judge = ReasoningJudge(engine, chat, settings.reasoning_threshold) if settings.reasoning else None
    return Gate(settings, judge=judge)


def build_rewriter(
    engine: Engine, chat: ChatFormat, gate: GateSettings, rewrite: RewriteSettings, *, adapter: str | None = None
) -> Rewriter:
    """A rewriter by the named strategy.

    Args:
        engine: samples and scores.
        chat: the chat format of the engine's model.
        gate: limits and thresholds of the checks.
        rewrite: the strategy and sampling limits.
        adapter: name of a loaded adapter for the `rewrite` proposer.

    Raises:
        SettingsError: unknown strategy.
    """
    strategy = find_strategy(rewrite.strategy, rewrite)
    return Rewriter(engine, chat, build_gate(engine, chat, gate), strategy, rewrite, adapter)
