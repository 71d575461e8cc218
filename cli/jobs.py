"""`rewright jobs`: work on whole files by a running service, which goes on without this command."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from agent.exceptions import OutputFileError
from cli import options
from cli.console import counting, print_table, result_console, say
from cli.exceptions import ServiceError, UsageError
from cli.lines import refuse_parquet, refuse_place

if TYPE_CHECKING:
    from cli.jobs_client import JobsClient

app = typer.Typer(
    help="Have a service work on whole files, and fetch what came of it.", no_args_is_help=True, rich_markup_mode=None
)

_PATIENCE_S = 60.0
_RESTART_PATIENCE_S = 1800.0  # a large model takes its time to load
_COLUMNS = ("job", "status", "rows", "done", "failed", "input")

Url = Annotated[str, typer.Option("--url", metavar="URL", help="Address of the service.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
_URL = "http://127.0.0.1:8000"


@app.command("submit")
def submit(
    source: Annotated[
        Path | None, typer.Argument(metavar="IN", help="JSONL or Parquet file; benchmarks alone need none.")
    ] = None,
    url: Url = _URL,
    strategy: Annotated[str | None, typer.Option("--strategy", metavar="S", help="Proposers to try, by name.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", metavar="A", help="An adapter of the service.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Tokens of a candidate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the sampling.")] = None,
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="rewrite, train, sft or evaluate.")] = "rewrite",
    params: Annotated[
        str | None, typer.Option("--params", metavar="JSON", help="Params of the job, as an object; see docs/jobs.md.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Upload IN, unless the service has a file of the same content, and start a job on it. Prints the id of the job."""
    from server.work_schemas import Kind

    if kind not in (kinds := get_args(Kind)):
        raise UsageError(f"--kind {kind!r}: there are {', '.join(kinds)}")
    if source is None and kind != "evaluate":
        raise UsageError(f"IN is missing: a job of kind {kind} works on a file")
    if source is not None and not source.is_file():
        raise UsageError(f"{source}: {'is not a file' if source.exists() else 'no such file'}")
    sampling = {name: value for name, value in (("max_tokens", max_tokens), ("seed", seed)) if value is not None}
    given = _params(params)
    named = {name: value for name, value in (("strategy", strategy), ("adapter", adapter)) if value is not None}
    with open_client(url) as client:
        file_id = None
        if source is not None:
            file = next(iter(client.uploads(content_of(source))), None) or client.upload(source)
            tell_problems(file)
            file_id = file["id"]
        params_given = given | named | ({"sampling": sampling} if sampling else {})
        job = client.submit(file_id, params_given, kind)
    print(json.dumps(job) if as_json else job["id"])


@app.command("list")
def list_jobs(url: Url = _URL, as_json: options.AsJson = False) -> None:
    """The jobs of the service, newest first."""
    with open_client(url) as client:
        jobs = list(client.jobs())
    if as_json:
        print(json.dumps(jobs))
    else:
        print_table(f"Jobs of {url}", _COLUMNS, [_row(job) for job in jobs], to=result_console())


@app.command("watch")
def watch(job_id: JobId, url: Url = _URL, max_errors: options.MaxErrors = 0, as_json: options.AsJson = False) -> None:
    """Follow a job until it ends. The exit code is 1 when it failed, or more than --max-errors rows did."""
    with open_client(url) as client:
        job = client.job(job_id)
    job = follow(job, url)
    if as_json:
        print(json.dumps(job))
    counts = job["request_counts"]
    if job["kind"] == "rewrite":
        came = f": {counts['completed']} of {counts['total']} rows, {counts['failed']} failed"
    else:
        made = job["fine_tuned_model"] or job["adapter"]
        came = f", {made}" if made else ""
    say(f"{job_id} {job['status']}{came}")
    if job["error"]:
        say(job["error"])
    if job["status"] != "completed" or counts["failed"] > max_errors:
        raise typer.Exit(1)


@app.command("cancel")
def cancel(job_id: JobId, url: Url = _URL) -> None:
    """End a job early; the rows that are finished are kept."""
    with open_client(url) as client:
        say(f"{job_id} {client.cancel(job_id)['status']}")


@app.command("results")
def results(
    job_id: JobId,
    output: options.Output = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    errors: Annotated[bool, typer.Option("--errors", help="Only the rows that failed.")] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Every answer that an exam measured.")] = False,
    url: Url = _URL,
) -> None:
    """Fetch the rows of a job that has ended, as JSON lines, or its report; to standard output without -o.

    The exit code is 1 when the job failed or was cancelled: what it had finished is fetched all the same.
    """
    if errors and samples:
        raise UsageError("--errors and --samples exclude each other")
    if output is not None:
        refuse_place(output)
        refuse_parquet(output)
        if output.exists() and not overwrite:
            raise OutputFileError(f"{output}: exists already: overwrite it, or choose another output")
    with open_client(url) as client:
        job = client.job(job_id)
        file_id = job.get("error_file" if errors else "samples_file" if samples else "output_file")
        if file_id is None:
            raise ServiceError(f"{job_id} has no such file: {_why_none(job, errors=errors)}")
        if output is None:
            client.download(file_id, sys.stdout.buffer.write)
            sys.stdout.buffer.flush()
        else:
            client.save(file_id, output)
    if job["status"] != "completed":
        counts = job["request_counts"]
        say(f"{job_id} is {job['status']}: {counts['completed'] + counts['failed']} of {counts['total']} rows")
        raise typer.Exit(1)


def _why_none(job: dict[str, Any], *, errors: bool) -> str:
    if errors and job["output_file"]:
        return "no row failed"
    if job["finished_at"] is None:
        return f"it is {job['status']}, and has none before its end; rewright jobs watch {job['id']} waits for that"
    return f"it is {job['status']}"


def follow(job: dict[str, Any], url: str) -> dict[str, Any]:
    """Show how far a job is until it ends, over restarts of the service; returns it then. Raises ServiceError."""
    job_id, counts = job["id"], job["request_counts"]
    done = counts["completed"] + counts["failed"]
    # The other kinds count no rows.
    far = f", {done} of {counts['total']} rows are done" if job["kind"] == "rewrite" else ""
    say(f"{job_id} is {job['status']}{far}")
    with open_client(url, _RESTART_PATIENCE_S) as client, counting(job_id, counts["total"], before=done) as show:
        return client.watch(job_id, lambda now: show(now["completed"] + now["failed"]))


def tell_problems(file: dict[str, Any]) -> None:
    """Say how many rows of an uploaded file cannot be read, if any."""
    if file["unreadable_rows"]:
        first = file["problems"][0]
        say(f"{file['unreadable_rows']} rows cannot be read; the first is line {first['line']}: {first['message']}")


def content_of(file: Path) -> str:
    """SHA-256 of a file, as a service names the content of its own."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _params(text: str | None) -> dict[str, Any]:
    from agent.strict_json import JsonValueError, check_json_value, parse_json

    try:
        params = parse_json(text) if text is not None else {}
        check_json_value(params)
    except JsonValueError as error:
        raise UsageError(f"--params is no JSON: {error}") from error
    if not isinstance(params, dict):
        raise UsageError('--params is no JSON object, as \'{"name": "math"}\' is one')
    return params


def open_client(url: str, patience_s: float = _PATIENCE_S) -> JobsClient:
    from cli.client import api_key
    from cli.jobs_client import JobsClient

    return JobsClient(url, api_key(), patience_s=patience_s)


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    counts = job["request_counts"]
    return (job["id"], job["status"], counts["total"], counts["completed"], counts["failed"], job["input_file"])
