"""`rewright check`: the gate alone, on candidates that are there already; and the calibration of its judge."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.demonstrations import BadRow, Demonstration
from cli import options
from cli.console import counting, print_table, result_console, say
from cli.exceptions import UsageError
from cli.lines import json_lines, refuse_parquet, refuse_target
from cli.settings import Given, Settings, load_settings

if TYPE_CHECKING:
    from agent.gate.calibration import Calibration, LabelledPair
    from agent.gate.checking import CheckSummary

_FALSE_ACCEPT_LIMITS = (None, 0.1, 0.05, 0.01, 0.0)
_IDS_SHOWN = 10


def check(
    source: options.Input,
    output: options.Lines = None,
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Task of every row.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Find thresholds for the reasoning judge on labelled rows.")
    ] = False,
    model: options.Model = None,
    revision: options.Revision = None,
    limit: options.Limit = None,
    max_errors: options.MaxErrors = 0,
    config: options.Config = None,
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Ask the gate alone.

    Rows of IN have a `candidate` beside the demonstration, and perhaps a `label`, accept or reject.
    Verdicts go to OUT or standard output, one JSON object a row; counts are printed at the end.
    The exit code is 1 when more than --max-errors rows have status error; a row that fails is no error.
    """
    flags = [Given.by_flag("model.name", "--model", model), Given.by_flag("model.revision", "--revision", revision)]
    settings = load_settings(config, os.environ, flags)
    from agent.gate import TASKS

    if task is not None and task not in TASKS:
        raise UsageError(f"--task {task!r}: known tasks are {', '.join(TASKS)}")
    if calibrate and output is not None:
        raise UsageError("--calibrate and -o exclude each other: the thresholds go to standard output")
    refuse_target(source, output)
    refuse_parquet(output)
    if as_json and output is None and not calibrate:
        raise UsageError("--json needs an output file for the verdicts: -o OUT")
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    if calibrate:
        found = asyncio.run(_calibrate(settings, _rows(source, limit, task)))
        _print_calibration(found, as_json=as_json)
        return
    summary = asyncio.run(_check_all(settings, source, limit, task, output))
    _print_summary(summary)
    if as_json:
        print(json.dumps({field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)}))
    if summary.errors > max_errors:
        say(f"{summary.errors} rows have status error, more than --max-errors {max_errors}")
        raise typer.Exit(1)


def _rows(source: Path, limit: int | None, task: str | None) -> Iterator[Demonstration | BadRow]:
    from cli.input import open_rows

    for row in open_rows(source, limit):
        yield dataclasses.replace(row, task=task) if task and isinstance(row, Demonstration) else row


async def _check_all(
    settings: Settings, source: Path, limit: int | None, task: str | None, output: Path | None
) -> CheckSummary:
    from agent.gate import Gate
    from agent.gate.checking import CheckSummary, check_rows
    from cli.input import count_rows

    total = count_rows(source, limit)
    summary = CheckSummary()
    async with AsyncExitStack() as stack:
        if settings.gate.reasoning:
            from agent.assembly import build_gate
            from cli.engine import engine_of

            engine, chat = await stack.enter_async_context(engine_of(settings))
            gate = build_gate(engine, chat, settings.gate)
        else:
            gate = Gate(settings.gate)  # no judge, no model
        stack.push_async_callback(gate.aclose)
        write = stack.enter_context(json_lines(output))
        show = stack.enter_context(counting("checked", total))
        rows = _rows(source, limit, task)
        results = await stack.enter_async_context(
            aclosing(check_rows(gate, rows, concurrency=settings.rewrite.concurrency))
        )
        async for result in results:
            write(result)
            summary.add(result)
            show(summary.passed + summary.failed + summary.errors)
    return summary


def _print_summary(summary: CheckSummary) -> None:
    rows: list[tuple[object, ...]] = [("passed", summary.passed), ("failed", summary.failed)]
    rows += [(f"  {name}", count) for name, count in summary.failed_checks.most_common()]
    rows.append(("errors", summary.errors))
    if summary.labelled_accept or summary.labelled_reject:
        rows.append(("false accepts", f"{len(summary.false_accepts)} of {summary.labelled_reject}"))
        rows.append(("false rejects", f"{len(summary.false_rejects)} of {summary.labelled_accept}"))
    print_table("The gate", ("what", "rows"), rows)
    for name, ids in (("false accepts", summary.false_accepts), ("false rejects", summary.false_rejects)):
        if ids:
            say(f"{name}: {', '.join(ids[:_IDS_SHOWN])}{' ...' if len(ids) > _IDS_SHOWN else ''}")


async def _calibrate(settings: Settings, rows: Iterator[Demonstration | BadRow]) -> Calibration:
    """Score the labelled rows with the judge, which is the model of the settings."""
    from agent.gate.calibration import calibrate
    from agent.gate.reasoning import ReasoningJudge
    from cli.engine import engine_of

    pairs = [pair for row in rows if (pair := _labelled(row)) is not None]
    if not pairs:
        raise UsageError("--calibrate needs rows with a `candidate` and a `label`, accept or reject")
    async with engine_of(settings) as (engine, chat):
        return await calibrate(ReasoningJudge(engine, chat, settings.gate.reasoning_threshold), pairs)


def _labelled(row: Demonstration | BadRow) -> LabelledPair | None:
    from agent.gate.calibration import LabelledPair

    if isinstance(row, BadRow):
        say(f"left out: line {row.line}: {row.message}")
        return None
    candidate, label = row.source.get("candidate"), row.source.get("label")
    if not isinstance(candidate, str) or label not in ("accept", "reject"):
        say(f"left out: line {row.line}: it needs a `candidate` and a `label`, accept or reject")
        return None
    return LabelledPair(row, candidate, label == "accept")


def _print_calibration(found: Calibration, *, as_json: bool) -> None:
    """Thresholds for several limits on false accepts, on standard output."""
    points = [(limit, found.best(limit)) for limit in _FALSE_ACCEPT_LIMITS]
    if as_json:
        counts = {"accepts": found.accepts, "rejects": found.rejects, "unscored": found.unscored}
        limits = [{"max_false_accept_rate": limit, **dataclasses.asdict(point)} for limit, point in points]
        print(json.dumps({**counts, "separation": found.separation, "thresholds": limits}))
        return
    say(
        f"{found.accepts} pairs to accept, {found.rejects} to reject, {found.unscored} too long for the judge; "
        f"separation {found.separation:.3f} (0.5 is chance)"
    )
    rows = [
        (
            "fewest errors" if limit is None else f"false accepts <= {limit:.0%}",
            f"{point.threshold:.4f}",
            f"{point.false_accept_rate:.1%}",
            f"{point.false_reject_rate:.1%}",
        )
        for limit, point in points
    ]
    columns = ("wanted", "gate.reasoning_threshold", "false accepts", "false rejects")
    print_table("The reasoning judge", columns, rows, to=result_console())
