"""`rewright rewrite`: a file of demonstrations becomes a file of rewrites, here or by a running service."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.console import say
from cli.exceptions import UsageError
from cli.lines import refuse_parquet, refuse_target
from cli.settings import Given, Settings, load_settings

if TYPE_CHECKING:
    from cli.output import Job
    from cli.summary import Summary

_PATIENCE_S = 60.0


def rewrite(
    source: options.Input,
    output: options.Output = None,
    model: options.Model = None,
    revision: options.Revision = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="A", help="Folder of an adapter; its name with --url.")
    ] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", metavar="S", help="Proposers to try, by name.")] = None,
    limit: options.Limit = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Send the work to this service instead.")
    ] = None,
    as_job: Annotated[
        bool, typer.Option("--job", help="With --url: one job for all of IN, which goes on without this command.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where OUT stops, or with the job.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    max_errors: options.MaxErrors = 0,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Tokens of a candidate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the sampling.")] = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Rewrite a file of demonstrations.

    Every row of IN has one row in OUT, in order and with its id.
    OUT is Parquet when it is named .parquet, else JSON lines; without -o rows go to standard output.
    The exit code is 1 when more than --max-errors rows have status error; OUT is complete all the same.
    It is 3 when a failure stopped the run: --resume goes on.
    """
    settings = load_settings(
        config,
        os.environ,
        [
            Given.by_flag("model.name", "--model", model),
            Given.by_flag("model.revision", "--revision", revision),
            Given.by_flag("rewrite.adapter", "--adapter", adapter),
            Given.by_flag("rewrite.strategy", "--strategy", strategy),
            Given.by_flag("rewrite.max_tokens", "--max-tokens", max_tokens),
            Given.by_flag("rewrite.seed", "--seed", seed),
        ],
    )
    _refuse_contradictions(output is None, resume, overwrite, as_json)
    if url:
        _refuse_for_service(model, revision)
    if as_job:
        _refuse_for_job(url, output, limit)
    refuse_target(source, output)
    if not url:
        from agent.strategies import find_strategy

        find_strategy(settings.rewrite.strategy, settings.rewrite)
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    if url:
        _say_what_is_the_services(settings)
    from cli.output import Job

    job = Job(source, output, limit, resume, overwrite)
    if as_job and url:
        from cli.rewrite_job import rewrite_as_job

        summary = rewrite_as_job(job, _asked_of_service(settings), url)
    else:
        summary = _rewrite_rows(settings, job, url)
    summary.print()
    if as_json:
        print(json.dumps(summary.as_dict()))
    if summary.errors > max_errors:
        say(f"{summary.errors} rows have status error, more than --max-errors {max_errors}")
        raise typer.Exit(1)


def _refuse_contradictions(to_stdout: bool, resume: bool, overwrite: bool, as_json: bool) -> None:
    if to_stdout and (resume or overwrite or as_json):
        raise UsageError("--resume, --overwrite and --json need an output file: -o OUT")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")


def _refuse_for_service(model: str | None, revision: str | None) -> None:
    for flag, value in (("--model", model), ("--revision", revision)):
        if value is not None:
            raise UsageError(f"{flag} and --url exclude each other: the service has its own model")


def _say_what_is_the_services(settings: Settings) -> None:
    """Name what was set and does not decide: a file of settings may be meant for both."""
    given = sorted(settings.model_fields_set & {"model", "gate"})
    if "strategies" in settings.rewrite.model_fields_set:
        given.append("rewrite.strategies")
    if given:
        say(f"with --url, your settings of {', '.join(given)} have no effect: the service has its own")


def _refuse_for_job(url: str | None, output: Path | None, limit: int | None) -> None:
    if url is None or output is None:
        raise UsageError("--job needs a service and an output file: --url URL -o OUT")
    if limit is not None:
        raise UsageError("--limit and --job exclude each other: a job works on the whole file")
    refuse_parquet(output)


def _rewrite_rows(settings: Settings, job: Job, url: str | None) -> Summary:
    """Row by row, here or by requests to a service."""
    from cli.client import api_key

    work = rewrite_there(settings, job, url, api_key(), _PATIENCE_S) if url else _rewrite_here(settings, job)
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        said = f": the same command with --resume goes on where {job.output} stops" if job.output else ""
        say(f"interrupted{said}")
        raise


async def _rewrite_here(settings: Settings, job: Job) -> Summary:
    from agent.adapters import find_adapter, open_adapter
    from agent.assembly import build_rewriter
    from agent.pipeline import rewrite_rows
    from cli.engine import engine_of, fetch_model
    from cli.output import open_job

    # The version, not only the name: resumed after another one was published, a file would have rows of both.
    folder = find_adapter(Path(settings.rewrite.adapter)).resolve() if settings.rewrite.adapter else None
    run = {
        "model": settings.model.model_dump(),
        "gate": settings.gate.model_dump(),
        "rewrite": {
            **settings.rewrite.model_dump(exclude={"concurrency"}),
            "adapter": str(folder) if folder else None,
        },
    }
    with open_job(job, run) as opened:
        base = fetch_model(settings.model)
        # Refused before the engine starts, which takes its time.
        adapter = open_adapter(folder, base.name, base=base.path) if folder else None
        async with engine_of(settings) as (engine, chat):
            if adapter:
                await engine.load_adapter(adapter.name, adapter.path)
            name = adapter.name if adapter else None
            rewriter = build_rewriter(engine, chat, settings.gate, settings.rewrite, adapter=name)
            try:
                model, concurrency = engine.info.model, settings.rewrite.concurrency
                results = rewrite_rows(rewriter, opened.rows, model=model, concurrency=concurrency, early=opened.early)
                return await opened.drive(results)
            finally:
                await rewriter.aclose()


async def rewrite_there(settings: Settings, job: Job, url: str, key: str | None, patience_s: float) -> Summary:
    """Have a service do the job.

    Args:
        settings: those of `rewrite` that somebody gave are sent along; the others are the service's business.
        job: the files.
        url: base address of the service.
        key: bearer key, None for a service without keys.
        patience_s: how long to try again while the service cannot be reached.

    Raises:
        ServiceError: the service cannot be reached, or refuses.
    """
    from cli.client import RewriteClient, rewrite_rows_remotely
    from cli.output import open_job

    asked = _asked_of_service(settings)
    async with RewriteClient(url, key, asked, patience_s=patience_s) as client:
        model = await client.ready()
        # The version, not only the name, as in `_rewrite_here`.
        run = {"model": model, **asked, "adapter": await client.pin_adapter()}
        with open_job(job, run) as opened:
            return await opened.drive(rewrite_rows_remotely(client, opened.rows, model=model, early=opened.early))


def _asked_of_service(settings: Settings) -> dict[str, Any]:
    """Fields of the requests: what was set by file, environment or flag."""
    given = settings.rewrite.model_dump(include=settings.rewrite.model_fields_set, exclude_none=True)
    asked = {name: given[name] for name in ("strategy", "adapter") if name in given}
    sampling = {name: given[name] for name in ("max_tokens", "top_p", "seed") if name in given}
    return asked | ({"sampling": sampling} if sampling else {})
