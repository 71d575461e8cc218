"""What is to be trained, as data: the same request runs here or, inside a `TrainingJob`, on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings, Section
from trainer.settings import TrainSettings
from trainer.sft.settings import SftSettings


class TrainingRequest(Section):
    """One training of the rewriting agent. Goes through JSON unchanged."""

    kind: Literal["train"] = "train"
    source: Path = Field(description="demonstrations")
    output: Path = Field(description="folder of the adapter's name; versions are published inside")
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    gate: GateSettings = GateSettings()
    rewrite: RewriteSettings = RewriteSettings()
    train: TrainSettings = TrainSettings()
    limit: int | None = Field(None, ge=1, description="rows of the source that are read at most")


class SftRequest(Section):
    """One fine-tuning of the base model. Goes through JSON unchanged."""

    kind: Literal["sft"] = "sft"
    source: Path = Field(description="output rows of the rewriter, or raw demonstrations")
    output: Path = Field(description="folder of the model")
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    sft: SftSettings = SftSettings()
    base_tokens: Path | None = Field(
        None, description="folder for what the frozen base model says of the rows; None keeps it with the training"
    )
    limit: int | None = Field(None, ge=1, description="rows of the source that are read at most")


class WorkerResources(Section):
    """What one training process reserves on a Ray cluster."""

    cpus: int = Field(1, ge=1, description="cores, and the engine's threads where engine.threads is not set")
    gpus: int = Field(0, ge=0, description="0 trains on the CPU, whatever the machine has")
    memory_mb: int | None = Field(None, ge=1, description="main memory in MiB, None for no reservation")


class TrainingJob(Section):
    """A training as a cluster runs it; its paths are paths of the cluster's machines."""

    request: TrainingRequest | SftRequest = Field(discriminator="kind")
    resume: bool = Field(False, description="go on from the last checkpoint")
    workers: int = Field(1, ge=1, description="data-parallel training processes")
    resources: WorkerResources = Field(WorkerResources(), description="of each worker")
