"""A comparison from request to report: the units of the plan one after the other, then what they found together.

Interrupted at any moment, the same call goes on with the unit that was running. A unit that fails is named with its
error, and the units that need it are left out; the others go on.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.settings import EngineSettings, ModelSettings
from trainer.checkpoints import checkpoints
from trainer.compare.collect import collect
from trainer.compare.finished import EXAM
from trainer.compare.folder import claimed, is_done, mark_done
from trainer.compare.inputs import check_models, exam_tasks, read_inputs, trained_and_asked
from trainer.compare.plan import Unit, described, make_plan
from trainer.compare.report import write_report
from trainer.compare.results import Comparison, Failure
from trainer.compare.rows import ROWS, keep_accepted, make_rows
from trainer.compare.settings import CompareRequest
from trainer.devices import with_dtype
from trainer.exceptions import EvaluationError
from trainer.request import SftRequest


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a comparison is.

    Attributes:
        number, total: of the unit, counted from 1.
        unit: the one that is going on.
        state: `begun`, `done`, `kept` from an earlier run, `failed` or `left out`.
        told: why it failed or was left out; in `begun`, what part of it is going on.
        done_part, total_part: of that part; 0 of 0 when it begins.
    """

    number: int
    total: int
    unit: Unit
    state: str
    told: str = ""
    done_part: int = 0
    total_part: int = 0


OnProgress = Callable[[Progress], None]
OnPart = Callable[[str, int, int], None]


def run_comparison(request: CompareRequest, *, on_progress: OnProgress | None = None) -> Comparison:
    """Do what is not done yet, and write `results.json`, figures and `report.html` into `request.output`.

    Blocks for as long as it takes, in a thread without a running event loop.

    Raises:
        TrainingSettingsError, CheckpointError: the folder cannot be used; see `trainer.compare.folder.claimed`.
        InputFileError, EvaluationError, AdapterError, SettingsError: see `read_inputs` and `make_plan`.
        ModelError: the base model cannot be had.
    """
    # Once for all units: results made on machines where `auto` differs must not be taken for one another's.
    request = request.model_copy(update={"engine": with_dtype(request.engine)})
    inputs = read_inputs(request)
    units = make_plan(request, inputs)
    base = check_models(request)
    report = on_progress or (lambda _: None)
    failures: dict[Path, Failure] = {}
    with claimed(request.output, described(request, inputs, base)):
        for number, unit in enumerate(units, 1):
            _one(request, unit, failures, lambda *told, n=number, u=unit: report(Progress(n, len(units), u, *told)))
        comparison = collect(request, units, list(failures.values()), trained_and_asked(request))
        write_report(request.output, comparison)
    return comparison


def _one(request: CompareRequest, unit: Unit, failures: dict[Path, Failure], report: Callable[..., None]) -> None:
    """Do one unit, or note why not."""
    if is_done(request.output, unit):
        report("kept")
        return
    if broken := [folder for folder in unit.needs if folder in failures]:
        failures[unit.folder] = Failure(unit=str(unit.folder), error=f"needs {broken[0]}, which failed")
        report("left out", failures[unit.folder].error)
        return
    report("begun")
    try:
        (request.output / unit.folder).mkdir(parents=True, exist_ok=True)
        _do(request, unit, lambda what, done, total: report("begun", what, done, total))
        mark_done(request.output, unit)
        _tidy(request.output / unit.folder)
    except Exception as error:  # whatever it is, the other units are not its business
        failures[unit.folder] = Failure(unit=str(unit.folder), error=f"{type(error).__name__}: {error}")
        report("failed", failures[unit.folder].error)
    else:
        report("done")
    gc.collect()  # models have cycles, and the next unit loads its own


def _do(request: CompareRequest, unit: Unit, on_part: OnPart) -> None:
    folder = request.output / unit.folder
    needs = [request.output / need for need in unit.needs]
    if unit.kind == "data" and unit.rewrite is not None:
        make_rows(request, unit, lambda done, total: on_part("rows", done, total))
    elif unit.kind == "data":
        keep_accepted(needs[0], folder)
    elif unit.kind == "train":
        _train(request, unit, needs[0] / ROWS if needs else None, folder, on_part)
    else:
        _examine(request, unit, needs[0] if needs else None, folder, on_part)


def _train(request: CompareRequest, unit: Unit, rows: Path | None, folder: Path, on_part: OnPart) -> None:
    from trainer.sft.run import run_sft

    assert unit.sft is not None
    asked = SftRequest(
        source=rows or request.compare.train,
        output=folder,
        model=request.model,
        engine=_for_training(request.engine),
        sft=unit.sft,
        limit=None if rows else request.compare.train_limit,
        base_tokens=request.output / "data" / "base-tokens",
    )
    run_sft(
        asked,
        resume=bool(checkpoints(folder / "training")),
        on_report=lambda report: on_part("steps", report.step, report.steps),
    )


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished unit needs, and what is the larger part of its disk: checkpoints."""
    for checkpoint in checkpoints(folder / "training"):
        shutil.rmtree(checkpoint)


def _for_training(engine: EngineSettings) -> EngineSettings:
    return engine.model_copy(update={"kind": "transformers"})


def _examine(request: CompareRequest, unit: Unit, model: Path | None, folder: Path, on_part: OnPart) -> None:
    from trainer.exam.request import EvaluationRequest
    from trainer.exam.run import run_evaluation

    shape = request.compare.shapes[unit.setup.shape] if unit.setup else None
    asked = EvaluationRequest(
        tasks=exam_tasks(request),
        output=folder / EXAM,
        model=request.model,
        data=request.compare.benchmarks,
        limit=request.compare.limit,
        engine=request.engine,
        gate=request.gate,
        evaluate=request.evaluate,
    )
    if model is not None and shape is not None:
        tuned: dict[str, Any] = {"adapter": model / "adapter"}
        if shape.method == "full":
            tuned = {"model": ModelSettings(name=str(model)), "base": request.model}
        asked = asked.model_copy(update=tuned)
    result = run_evaluation(
        asked, resume=True, on_report=lambda progress: on_part(progress.task, progress.done, progress.total)
    )
    if missing := [f"{name}: {result.tasks[name].not_run}" for name in unit.tasks if result.tasks[name].not_run]:
        raise EvaluationError("; ".join(missing))
