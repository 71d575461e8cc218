"""`rewright evaluate`: what a fine-tuned model learnt, what it forgot, and how far it moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.settings import ModelSettings
from cli import options
from cli.console import counting, fetching, interrupt_when_terminated, print_table, result_console, say
from cli.exceptions import UsageError
from cli.settings import Given, load_settings
from trainer.exam.request import EvaluationRequest

if TYPE_CHECKING:
    from trainer.exam.results import EvaluationResult
    from trainer.exam.run import Progress

_LOWER_IS_BETTER = " (lower is better)"


def evaluate(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="smollm2-135m, a folder, or a hub id.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="LIST", help="Benchmarks, and NAME=PATH for questions; with commas between."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="JSON", help="Result; samples lie beside it.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", metavar="A", help="Folder of a LoRA on MODEL.")] = None,
    revision: options.Revision = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="M", help="What MODEL was trained from, for the KL divergence.")
    ] = None,
    base_revision: Annotated[
        str | None, typer.Option("--base-revision", metavar="COMMIT", help="Commit of --base, if it is a hub id.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="Benchmark files; without it they are fetched.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Rows a task: a fixed random subset.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="Sampled answers a question, beside the greedy one.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", help="Of the sampled ones.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the finished tasks of JSON, run the others.")] = False,
    config: options.Config = None,
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Measure task accuracy, retention and the KL divergence from the base model.

    Benchmarks: hellaswag, arc_easy, piqa, lambada, wikitext, ifeval. Questions: any file that rewrite reads.
    The exit code is 1 when a benchmark could not be run; the others are in JSON all the same.
    """
    flags = [
        Given.by_flag("model.name", "MODEL", model),
        Given.by_flag("model.revision", "--revision", revision),
        Given.by_flag("evaluate.samples", "--samples", samples),
        Given.by_flag("evaluate.temperature", "--temperature", temperature),
    ]
    settings = load_settings(config, os.environ, flags)
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    if model is None or tasks is None or output is None:
        raise UsageError("what to measure and where to put it: rewright evaluate MODEL --tasks LIST -o JSON")
    if base_revision is not None and base is None:
        raise UsageError("--base-revision needs --base")
    request = EvaluationRequest(
        tasks=tuple(tasks.split(",")),
        output=output,
        model=settings.model,
        adapter=adapter,
        base=ModelSettings(name=base, revision=base_revision) if base else None,
        data=data,
        limit=limit,
        engine=settings.engine,
        gate=settings.gate,
        evaluate=settings.evaluate,
    )
    result = _run(request, resume=resume)
    if as_json:
        print(result.model_dump_json())
    else:
        _print(result)
    for note in result.notes:
        say(note)
    say(f"result in {output}, every sample beside it")
    if _tell_not_run(result, request.tasks):
        raise typer.Exit(1)


def _run(request: EvaluationRequest, *, resume: bool) -> EvaluationResult:
    from agent.models import resolve_model
    from trainer.exam.files import check_output
    from trainer.exam.request import read_tasks
    from trainer.exam.run import run_evaluation

    check_output(request.output, resume=resume)
    read_tasks(request.tasks)
    for model in filter(None, (request.model, request.base)):
        with fetching(model.name) as on_progress:
            resolve_model(model, on_progress=on_progress)
    interrupt_when_terminated()
    try:
        with exam_progress() as report:
            return run_evaluation(request, resume=resume, on_report=report)
    except KeyboardInterrupt:
        say("interrupted: the same command with --resume goes on with the tasks that are missing")
        raise


@contextmanager
def exam_progress() -> Iterator[Callable[[Progress], None]]:
    """One count of rows a task, each from its first report to the next task's."""
    with ExitStack() as stack:
        task: str | None = None
        show: Callable[[int], None] = lambda _: None  # noqa: E731

        def report(progress: Progress) -> None:
            nonlocal task, show
            if progress.task != task:
                stack.close()
                task = progress.task
                show = stack.enter_context(counting(task, progress.total))
            show(progress.done)

        yield report


def _print(result: EvaluationResult) -> None:
    rows = [
        (
            name,
            f"{metric}{'' if task.higher_is_better or metric != task.primary else _LOWER_IS_BETTER}",
            f"{measure.value:.4f}",
            "" if measure.stderr is None else f"{measure.stderr:.4f}",
            task.rows,
            sum(task.left_out.values()) or "",
        )
        for name, task in result.tasks.items()
        for metric, measure in task.metrics.items()
    ]
    columns = ("task", "metric", "value", "stderr", "rows", "left out")
    who = result.model.name + (f" with {result.model.adapter}" if result.model.adapter else "")
    if rows:
        print_table(who, columns, rows, to=result_console())


def _tell_not_run(result: EvaluationResult, asked: Sequence[str]) -> bool:
    """Say why tasks have no figures, and rows none or doubtful ones; whether one of those `asked` now has none."""
    names = {task.strip().partition("=")[0] for task in asked}
    for name, task in result.tasks.items():
        for reason, count in task.left_out.items():
            say(f"{name}: {count} rows left out: {reason}")
        if task.cut:
            say(f"{name}: the contexts of {task.cut} rows were cut from the left to fit that of the model")
        if task.timeouts:
            say(f"{name}: {task.timeouts} answer comparisons reached the time limit, and count as not equal")
        if task.not_run is not None:
            say(f"{name}: not run: {task.not_run}")
    return any(task.not_run is not None and name.removeprefix("kl:") in names for name, task in result.tasks.items())
