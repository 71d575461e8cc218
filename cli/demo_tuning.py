"""The end of `rewright demo`: fine-tuning on what the experts wrote and on what came of it, and what each cost.

Both fine-tunings are the same but for the targets. What was forgotten is told by the divergence from the base model on
questions of neither file, and by what is answered right there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from agent.settings import Section
from cli.console import print_table, say
from cli.evaluate import exam_progress
from cli.settings import Settings
from cli.sft import tuning_progress
from trainer.exam.request import EvaluationRequest
from trainer.exam.results import EvaluationResult
from trainer.exam.settings import EvaluateSettings
from trainer.request import SftRequest
from trainer.settings import LoraSettings
from trainer.sft.settings import SftSettings

_TASK = "unseen"
_ROWS = 48
_TUNING = SftSettings(
    lora=LoraSettings(rank=16), merge=False, epochs=4, batch_rows=8, learning_rate=3e-4, loss_rows=1000
)
_EXAM = EvaluateSettings(max_tokens=256, kl_rows=_ROWS, kl_max_tokens=128)


def tune_and_compare(settings: Settings, experts: Path, rewritten: Path, questions: Path, folder: Path) -> None:
    """Fine-tune the base model on both files, examine the three models, and print one line for each.

    Args:
        settings: of model, engine and gate; what they say of `sft` and `evaluate` goes before this module's own.
        experts: the demonstrations as they were.
        rewritten: the same after rewriting.
        questions: a file of other questions, with answers.
        folder: where models and exams go; those of an earlier demonstration are replaced.
    """
    before = _examine(settings, None, questions, folder / "demo-exam-base.json")
    rows = [["not tuned", "", "", "", _right(before)]]
    for name, source in (("experts", experts), ("rewritten", rewritten)):
        output = folder / f"demo-tuned-{name}"
        shutil.rmtree(output, ignore_errors=True)
        _tune(settings, source, output)
        exam = _examine(settings, output / "adapter", questions, folder / f"demo-exam-{name}.json")
        card = json.loads((output / "sft.json").read_text())
        divergence = exam.tasks[f"kl:{_TASK}"].metrics["kl_per_token"].value
        losses = [f"{card[figure]:.3f}" for figure in ("initial_loss", "final_loss")]
        rows.append([f"tuned on {name}", *losses, f"{divergence:.4f}", _right(exam)])
    columns = ["model", "loss at first", "loss at last", "moved, KL", f"right of {_ROWS}"]
    print_table("Fine-tuning (nats/token; KL from the model before, on questions of neither file)", columns, rows)


def _tune(settings: Settings, source: Path, output: Path) -> None:
    from trainer.sft.run import run_sft

    say(f"   fine-tuning on {source.name}")
    request = SftRequest(
        source=source,
        output=output,
        model=settings.model,
        engine=settings.engine,
        sft=_TUNING.model_copy(update=_given(settings.sft)),
    )
    with tuning_progress() as report:
        run_sft(request, resume=False, on_report=report)


def _examine(settings: Settings, adapter: Path | None, questions: Path, output: Path) -> EvaluationResult:
    from trainer.exam.run import run_evaluation

    output.unlink(missing_ok=True)
    request = EvaluationRequest(
        tasks=(f"{_TASK}={questions}",),
        output=output,
        model=settings.model,
        adapter=adapter,
        limit=_ROWS,
        engine=settings.engine,
        gate=settings.gate,
        evaluate=_EXAM.model_copy(update=_given(settings.evaluate)),
    )
    with exam_progress() as report:
        return run_evaluation(request, on_report=report)


def _given(section: Section) -> dict[str, Any]:
    """What somebody has set in it."""
    return {name: getattr(section, name) for name in section.model_fields_set}


def _right(exam: EvaluationResult) -> str:
    task = exam.tasks[_TASK]
    return f"{task.metrics[task.primary].value * task.rows:.0f}"
