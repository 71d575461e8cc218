"""The adapter under training, and how the engine comes to draw from it.

Either engine and trainer use one model in turns, or the engine has a copy of the base model to itself and is given the
adapter as files, a version for each state of the weights: a few megabytes, not a merged model. Not here: what is drawn
(`trainer.rollout`), and the updates (`trainer.grpo`).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import torch
from peft import LoraConfig, PeftModel
from transformers.utils import logging

from agent.chat import ChatFormat
from agent.engine import Engine, LocalEngine
from agent.engine.loading import keep_freed_memory, load_model, usable_cores
from agent.engine.lora import LoraHost
from agent.engine.transformers_engine import TransformersEngine
from agent.engine.vllm_start import start_vllm
from agent.models import ModelFiles
from agent.settings import EngineSettings, LoraRank
from trainer.lora import seeded_lora
from trainer.request import TrainingRequest
from trainer.settings import TrainSettings

POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Version:
    """What the engine draws from: the adapter's name in requests, and the updates that its weights have seen."""

    adapter: str
    step: int


class Policy(Protocol):
    """The adapter under training, and the engine that draws from it."""

    @property
    def engine(self) -> Engine:
        """Draws from the published version; scores under the base model."""
        ...

    @property
    def model(self) -> PeftModel:
        """The base model with the adapter that is trained."""
        ...

    @property
    def engine_is_apart(self) -> bool:
        """Whether the engine computes on a copy, and reports the log-probabilities that tokens were drawn with."""
        ...

    async def publish(self, step: int) -> Version:
        """Have the engine draw from the weights as they are after `step` updates.

        Raises:
            AdapterError: the engine cannot take the adapter.
            EngineClosedError: the engine has died.
            OSError: it cannot be written.
        """
        ...

    def hand_over(self) -> None:
        """Leave the weights to the trainer, in training mode, while the engine has nothing to do."""
        ...


class SharedPolicy:
    """The transformers engine and the trainer use one model in turns: the engine always has the newest weights."""

    engine_is_apart = False

    def __init__(self, engine: TransformersEngine, config: LoraConfig) -> None:
        self.engine, self.model = engine, engine.add_trainable_adapter(POLICY, config)

    async def publish(self, step: int) -> Version:
        """See `Policy.publish`."""
        self.model.eval()  # where activations are computed anew, each step of the engine would pass through that too
        return Version(POLICY, step)

    def hand_over(self) -> None:
        """See `Policy.hand_over`."""
        self.engine.hand_over(POLICY)
        self.model.train()


class PublishedPolicy:
    """An engine with a copy of its own holds one version, which the next one replaces.

    Args:
        engine: with room for one adapter; reports the log-probabilities that tokens were drawn with.
        model: the trainer's copy of the base model, with the adapter.
        folder: where versions are written, `<step>` each; it holds nothing else.
    """

    engine_is_apart = True

    def __init__(self, engine: LocalEngine, model: PeftModel, folder: Path) -> None:
        self.engine, self.model, self._folder = engine, model, folder
        self._published: Version | None = None

    async def publish(self, step: int) -> Version:
        """See `Policy.publish`. The version before is gone from the engine and the disk when this returns."""
        old, new = self._published, Version(f"{POLICY}@{step}", step)
        if new == old:
            return new
        self.model.save_pretrained(str(self._folder / str(step)))
        if old is not None:
            await self.engine.unload_adapter(old.adapter)
            self._published = None
            shutil.rmtree(self._folder / str(old.step))
        await self.engine.load_adapter(new.adapter, self._folder / str(step))
        self._published = new
        return new

    def hand_over(self) -> None:
        """See `Policy.hand_over`. The weights are the trainer's alone."""
        self.model.train()


def open_policy(
    runner: asyncio.Runner, files: ModelFiles, chat: ChatFormat, request: TrainingRequest, folder: Path
) -> AbstractContextManager[Policy]:
    """Within: a new adapter on the base model, with the engine of the settings. The engine is closed at the end.

    Args:
        runner: whose event loop the engine is used from.
        files: of the base model.
        chat: its format.
        request: the settings.
        folder: of the training; published versions lie in it meanwhile.

    Raises:
        ModelError: the engine asked for is not installed, or the model is not supported.
        AdapterError: no LoRA of the shape asked for fits the model.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights being loaded
    if request.engine.kind == "vllm":
        return _published_policy(runner, files, chat, request, folder / "policy")
    return _shared_policy(runner, files, chat, request)


@contextmanager
def _shared_policy(
    runner: asyncio.Runner, files: ModelFiles, chat: ChatFormat, request: TrainingRequest
) -> Iterator[Policy]:
    engine = TransformersEngine(files.name, files.path, chat.tokenizer, chat.stop_ids, request.engine)
    try:
        yield SharedPolicy(engine, seeded_lora(request.train.lora, request.train.seed))
    finally:
        runner.run(engine.close())


@contextmanager
def _published_policy(
    runner: asyncio.Runner, files: ModelFiles, chat: ChatFormat, request: TrainingRequest, versions: Path
) -> Iterator[Policy]:
    shutil.rmtree(versions, ignore_errors=True)  # of a killed run
    settings = engine_beside_trainer(request.engine, request.train)
    engine = start_vllm(files.name, files.path, chat.tokenizer, chat.stop_ids, settings, logprobs_as_drawn=True)
    try:
        torch.set_num_threads(request.engine.threads or usable_cores())
        keep_freed_memory()
        own = LoraHost(load_model(files.path, request.engine))
        yield PublishedPolicy(
            engine, own.add_trainable(POLICY, seeded_lora(request.train.lora, request.train.seed)), versions
        )
    finally:
        runner.run(engine.close())
        shutil.rmtree(versions, ignore_errors=True)


def engine_beside_trainer(engine: EngineSettings, train: TrainSettings) -> EngineSettings:
    """The settings of a vLLM engine that leaves the trainer its memory and has room for the one adapter."""
    options = {
        "gpu_memory_utilization": train.engine_memory,
        "max_lora_rank": next(rank for rank in get_args(LoraRank) if rank >= train.lora.rank),
        "max_loras": 1,
        "max_cpu_loras": 1,
    }
    return engine.model_copy(update={"vllm": engine.vllm.model_copy(update=options)})
