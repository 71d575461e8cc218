"""What is to be examined, as data, and how a list of tasks is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from agent.settings import EngineSettings, GateSettings, ModelSettings, Section
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError

RETENTION_TASKS = ("hellaswag", "arc_easy", "piqa", "lambada", "wikitext", "ifeval")

_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}", re.ASCII)


class EvaluationRequest(Section):
    """One exam. Goes through JSON unchanged."""

    tasks: tuple[str, ...] = Field(min_length=1, description="names of benchmarks, and NAME=PATH for task accuracy")
    output: Path = Field(description="result as JSON; samples lie beside it")
    model: ModelSettings = ModelSettings()
    adapter: Path | None = Field(None, description="LoRA of the model, as `agent.adapters.find_adapter` reads it")
    base: ModelSettings | None = Field(
        None, description="what the divergence is measured from; None for the model without its adapter"
    )
    data: Path | None = Field(None, description="folder of the benchmarks' files; None fetches them from the hub")
    limit: int | None = Field(None, ge=1, description="rows a task, a fixed subset drawn by the seed")
    engine: EngineSettings = EngineSettings()
    gate: GateSettings = GateSettings()
    evaluate: EvaluateSettings = EvaluateSettings()


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks of a request: files of questions by the name given to them, and benchmarks."""

    accuracy: dict[str, Path]
    retention: tuple[str, ...]


def read_tasks(names: Sequence[str]) -> Tasks:
    """Tell files of questions (`NAME=PATH`) from benchmarks.

    Raises:
        EvaluationError: an unknown benchmark (the known ones are listed), a name given twice, or one that is taken.
    """
    accuracy: dict[str, Path] = {}
    retention: list[str] = []
    for text in names:
        name, equals, path = text.strip().partition("=")
        if name in accuracy or name in retention:
            raise EvaluationError(f"task {name!r} is given twice")
        if not equals:
            if name not in RETENTION_TASKS:
                raise EvaluationError(
                    f"unknown task {name!r}: known are {', '.join(RETENTION_TASKS)}, and NAME=PATH for a file of "
                    "questions with answers"
                )
            retention.append(name)
        elif not _NAME.fullmatch(name) or name in RETENTION_TASKS or not path:
            raise EvaluationError(f"task {text!r}: give a file of questions as NAME=PATH, with a name of its own")
        else:
            accuracy[name] = Path(path)
    if not accuracy and not retention:
        raise EvaluationError("no task is given")
    return Tasks(accuracy, tuple(retention))
