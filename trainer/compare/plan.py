"""The plan of a comparison: which units there are, what each needs, and what tells it from others.

A unit is one thing that is done once: rows made, a model trained, a model examined. Its key is a hash of all that
decides how it comes out, and part of its folder's name: what two methods, learning rates or seeds share is done once,
and what a changed setting does not touch is kept. Which tasks an exam asks is no part of it: one that is asked more
goes on with what it lacks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent.settings import GateSettings, RewriteSettings, Step
from agent.strategies import find_strategy
from trainer.compare.methods import BASE, METHODS, Method, sft_settings
from trainer.compare.settings import CompareRequest, ShapeSettings
from trainer.publish import package_versions
from trainer.sft.settings import WITHOUT_EFFECT, SftSettings

UnitKind = Literal["data", "train", "exam"]

# Settings of the fine-tuning that methods, shapes and lists decide.
_OF_METHODS = ("method", "lora", "loss", "kl_weight", "learning_rate", "epochs", "steps", "seed")
OF_SETUPS: dict[str, Any] = {**dict.fromkeys(_OF_METHODS, True), "weights": {"kind", "apply_to"}}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What tells the files of a comparison from others.

    Attributes:
        train: of the expert demonstrations.
        tasks: of each file of questions and each benchmark, by name.
        adapters: of each rewriter, its configuration included, by name.
    """

    train: str
    tasks: Mapping[str, str]
    adapters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Setup:
    """One fine-tuning among those that are compared."""

    method: str
    shape: str
    steps: int
    learning_rate: float
    seed: int

    @property
    def told(self) -> str:
        return f"{self.method}_{self.shape}_lr{self.learning_rate:g}_steps{self.steps}_seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit.

    Attributes:
        name: for people.
        key: SHA-256 of all that decides how it comes out.
        needs: folders of the units that must be done before.
        rewrite: of `data`: how rows are made; None filters those of the unit that it needs.
        gate: of `data`: what they must pass.
        adapter: of `data`: name of the rewriter's adapter.
        sft: of `train`.
        setup: of `train`, and of `exam` but for the base model's.
        tasks: of `exam`: what tells the rows of each apart, by name.
    """

    kind: UnitKind
    name: str
    key: str
    needs: tuple[Path, ...] = ()
    rewrite: RewriteSettings | None = None
    gate: GateSettings | None = None
    adapter: str | None = None
    sft: SftSettings | None = None
    setup: Setup | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Below the folder of the comparison."""
        return Path(self.kind) / f"{self.name}-{self.key[:10]}"


def setups(request: CompareRequest) -> Iterator[Setup]:
    """All fine-tunings, the methods innermost, so that those of one learning rate are done before the next begins."""
    compare = request.compare
    methods = [method for method in compare.methods if method != BASE]
    for shape, seed, steps, rate, method in itertools.product(
        compare.shapes, compare.seeds, compare.steps, compare.learning_rates, methods
    ):
        yield Setup(method, shape, steps, rate, seed)


def make_plan(request: CompareRequest, inputs: Inputs) -> list[Unit]:
    """The units in the order in which they are done, each after those that it needs.

    Raises:
        SettingsError: a strategy of the rewriter is not known.
    """
    units: dict[Path, Unit] = {}

    def add(unit: Unit) -> Unit:
        return units.setdefault(unit.folder, unit)

    add(_exam(request, inputs, BASE, _key(request.model.model_dump(mode="json")), (), None))
    for setup in setups(request):
        method = METHODS[setup.method]
        data = [add(unit) for unit in _data(request, inputs, method)]
        train = add(_train(request, inputs, setup, data[-1] if data else None))
        add(_exam(request, inputs, setup.told, train.key, (train.folder,), setup))
    return list(units.values())


def described(request: CompareRequest, inputs: Inputs, base: str) -> dict[str, Any]:
    """What all units of one folder share; methods, learning rates, seeds, steps, shapes and tasks may be added later.

    Args:
        request: with the type that `auto` stands for.
        inputs: its files.
        base: SHA-256 of the base model's weights; a name may come to stand for others.
    """
    return {
        **request.model_dump(mode="json", include={"model", "gate"}),
        "rewrite": request.rewrite.model_dump(mode="json", include={"max_tokens", "top_p", "seed"}),
        "sft": request.sft.model_dump(mode="json", exclude=OF_SETUPS | dict.fromkeys(WITHOUT_EFFECT, True)),
        "evaluate": request.evaluate.model_dump(mode="json", exclude={"concurrency"}),
        "weights of the base model": base,
        "dtype": request.engine.dtype,
        "engine": [request.engine.kind, request.engine.vllm.quantization],
        "training data": [inputs.train, request.compare.train_limit],
        "limit": request.compare.limit,
        **{f"version of {name}": version for name, version in package_versions("lm-eval").items()},
    }


def _data(request: CompareRequest, inputs: Inputs, method: Method) -> list[Unit]:
    """The units that make a method's rows, the last of which has them; none for the expert's own."""
    if not method.proposers:
        return []
    steps = tuple(step for name in method.proposers for step in find_strategy(name, request.rewrite))
    name = "-".join((*method.proposers, *([method.adapter] if method.adapter else [])))
    rewrite = request.rewrite.model_copy(update={"strategy": name, "strategies": {name: steps}, "adapter": None})
    gate = request.gate.model_copy(update={"steps": False}) if method.own_way else request.gate
    key = _key(
        inputs.train,
        request.compare.train_limit,
        {"model": request.model.model_dump(mode="json"), "gate": gate.model_dump(mode="json")},
        request.engine.model_dump(mode="json", include={"dtype", "max_length"}),
        rewrite.model_dump(mode="json", include={"max_tokens", "top_p", "seed"}),
        [Step.model_dump(step, mode="json") for step in steps],
        inputs.adapters[method.adapter] if method.adapter else None,
    )
    made = Unit("data", name, key, rewrite=rewrite, gate=gate, adapter=method.adapter)
    if not method.success_only:
        return [made]
    return [made, Unit("data", f"{name}-success-only", _key(key, "success only"), (made.folder,))]


def _train(request: CompareRequest, inputs: Inputs, setup: Setup, data: Unit | None) -> Unit:
    shape: ShapeSettings = request.compare.shapes[setup.shape]
    sft = sft_settings(
        METHODS[setup.method],
        request.sft,
        {"method": shape.method, "lora": shape.lora},
        learning_rate=setup.learning_rate,
        steps=setup.steps,
        seed=setup.seed,
        kl_weight=request.compare.kl_weight,
    )
    key = _key(
        data.key if data else [inputs.train, request.compare.train_limit],
        request.model.model_dump(mode="json"),
        request.engine.model_dump(mode="json", include={"dtype", "max_length"}),
        sft.model_dump(mode="json", exclude=WITHOUT_EFFECT),
    )
    return Unit("train", setup.told, key, (data.folder,) if data else (), sft=sft, setup=setup)


def _exam(
    request: CompareRequest, inputs: Inputs, name: str, model: str, needs: tuple[Path, ...], setup: Setup | None
) -> Unit:
    key = _key(
        model,
        request.compare.limit,
        request.engine.model_dump(mode="json", include={"dtype", "max_length"}),
        request.evaluate.model_dump(mode="json", exclude={"concurrency"}),
    )
    return Unit("exam", name, key, needs, setup=setup, tasks=inputs.tasks)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
