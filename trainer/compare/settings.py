"""Settings of a comparison: plain validated data; where values come from is the caller's business."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings, Section
from trainer.compare.methods import BASE, METHODS, unknown_methods
from trainer.exam.settings import EvaluateSettings
from trainer.settings import LoraSettings
from trainer.sft.settings import SftSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")


class ShapeSettings(Section):
    """Which weights are trained."""

    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()


class CompareSettings(Section):
    """What is compared, and on what; everything else the methods share (`sft`, `rewrite`, `gate`, `evaluate`)."""

    train: Path = Field(description="expert demonstrations")
    train_limit: int | None = Field(None, ge=1, description="first rows of it that are used")
    accuracy: dict[str, Path] = Field(min_length=1, description="files of questions with answers, by name: the task")
    retention: tuple[str, ...] = Field(min_length=1, description="benchmarks that the base model should keep")
    benchmarks: Path | None = Field(None, description="folder of the benchmarks' files; None fetches them")
    limit: int | None = Field(None, ge=1, description="rows of each task of the exam, a fixed subset")
    methods: tuple[str, ...] = Field(min_length=1, description="see trainer.compare.methods; base is always measured")
    adapters: dict[str, Path] = Field(default_factory=dict, description="trained rewriters, by gate_only, paper, ...")
    learning_rates: tuple[float, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    steps: tuple[int, ...] = Field(min_length=1, description="updates; several let tokens and compute be matched")
    shapes: dict[str, ShapeSettings] = Field({"lora": ShapeSettings()}, min_length=1, description="by name")
    kl_weight: float = Field(0.1, gt=0, description="of the method kl, nats a completion token")
    draws: int = Field(1000, ge=100, le=100_000, description="of the bootstrap")
    level: float = Field(0.95, gt=0, lt=1, description="of its intervals")

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := unknown_methods(methods):
            raise ValueError(f"unknown {', '.join(map(repr, unknown))}; known are {', '.join((BASE, *METHODS))}")
        if methods == (BASE,):
            raise ValueError("name a method besides base, which is always measured")
        return methods

    @field_validator("methods", "learning_rates", "seeds", "steps", "retention")
    @classmethod
    def _distinct(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise ValueError(f"{', '.join(map(str, twice))} is given twice")
        return values

    @field_validator("learning_rates", "steps")
    @classmethod
    def _positive(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(value <= 0 for value in values):
            raise ValueError("must be greater than 0")
        return tuple(sorted(values))

    @field_validator("shapes")
    @classmethod
    def _named(cls, shapes: dict[str, ShapeSettings]) -> dict[str, ShapeSettings]:
        if wrong := [name for name in shapes if not _NAME.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is no name of a shape: use letters, digits and '-'")
        return shapes

    @model_validator(mode="after")
    def _has_adapters(self) -> CompareSettings:
        needed = {name: METHODS[name].adapter for name in self.methods if name != BASE}
        missing = {adapter for adapter in needed.values() if adapter and adapter not in self.adapters}
        for name, adapter in needed.items():
            if adapter in missing:
                raise ValueError(
                    f"method {name} needs a trained rewriter: give its folder as compare.adapters.{adapter}, or leave "
                    "the method out"
                )
        if unused := [name for name in self.adapters if name not in {m.adapter for m in METHODS.values()}]:
            raise ValueError(f"adapters.{unused[0]} is of no method")
        return self


class CompareRequest(Section):
    """One comparison. Goes through JSON unchanged."""

    output: Path = Field(description="folder of its units and its report")
    compare: CompareSettings
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    gate: GateSettings = GateSettings()
    rewrite: RewriteSettings = RewriteSettings()
    sft: SftSettings = SftSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
