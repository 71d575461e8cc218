"""`rewright rewrite --url --job`: a file as one job of a service, followed to its end, and its rows fetched.

The service finds the job again by the content of the input and the settings. Beside the output, `OUT.run.json` says
which they were, as it does of rows that came without a job.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.exceptions import OutputFileError
from agent.intake import input_identity
from agent.output import refuse_other_run, write_run
from agent.records import read_file_row
from agent.usage import Usage
from cli.console import say
from cli.exceptions import ServiceError, UsageError
from cli.jobs import content_of, follow, open_client, tell_problems
from cli.lines import refuse_target
from cli.output import Job
from cli.summary import Summary

if TYPE_CHECKING:
    from cli.jobs_client import JobsClient

_UNDONE = ("failed", "cancelled")


def rewrite_as_job(job: Job, asked: dict[str, Any], url: str) -> Summary:
    """Have a service work on the whole input, and fetch what came of it.

    Beside the output, rows that failed are written to a file of their own, named after it.

    Args:
        job: the files; with `resume`, a job that has been started on the same input with the same settings is taken
            up again, and its output replaced.
        asked: params of the job.
        url: base address of the service.

    Raises:
        UsageError: the input is no file, or the same work is under way.
        OutputFileError: an output exists already, or cannot be written.
        ResumeError: an output exists that is not of this job.
        ServiceError: the service cannot be reached, or refuses; the job failed or was cancelled.
    """
    assert job.output is not None
    failures = job.output.with_suffix(".failed.jsonl")
    if not job.source.is_file():
        raise UsageError(f"{job.source}: --job sends a file, of JSON lines or Parquet, and this is none")
    refuse_target(job.source, failures)
    content = content_of(job.source)
    run = {"input": input_identity(job.source), "job": f"sha256:{content}", **asked}
    _refuse_files(job, failures, run)
    summary = Summary()
    with open_client(url) as client:
        found = _find_or_start(client, job, asked, content)
    job_id = found["id"]
    try:
        ended = follow(found, url)
        if ended["status"] in _UNDONE:
            raise ServiceError(f"{job_id} {ended['status']}: {ended['error'] or 'somebody ended it'}")
        with open_client(url) as client:
            write_run(job.output, run)  # first: these rows never lie beside another's file
            client.save(ended["output_file"], job.output)
            failures.unlink(missing_ok=True)  # of an earlier run
            if ended["error_file"]:
                client.save(ended["error_file"], failures)
                say(f"the rows that failed are in {failures}")
    except KeyboardInterrupt:
        say(
            f"interrupted: {job_id} goes on without; the same command with --resume takes it up again, "
            f"rewright jobs cancel {job_id} --url {url} ends it"
        )
        raise
    _count(job.output, summary)
    return summary


def _refuse_files(job: Job, failures: Path, run: dict[str, Any]) -> None:
    for path in (job.output, failures):
        if path and path.exists() and not job.overwrite:
            if not job.resume:
                raise OutputFileError(f"{path}: exists already: resume it, overwrite it, or choose another output")
            assert job.output is not None
            refuse_other_run(job.output, run)


def _find_or_start(client: JobsClient, job: Job, asked: dict[str, Any], content: str) -> dict[str, Any]:
    """The job to follow: an earlier one to take up again, or a new one. `content` is the input's SHA-256."""
    uploads = client.uploads(content)
    same = {"kind": "rewrite", "params": asked}
    ids = {upload["id"] for upload in uploads}
    earlier = next((j for j in client.jobs() if j["input_file"] in ids and same.items() <= j.items()), None)
    if earlier and job.resume and earlier["status"] not in _UNDONE:
        # Asked for after the job, which may have ended since the first list.
        gone = {earlier["output_file"], earlier["error_file"]} - {None, *(f["id"] for f in client.files())}
        if earlier["finished_at"] is None or not gone:
            return earlier
        say(f"the results of {earlier['id']} have expired or were deleted: it is done again")
    if earlier and not job.overwrite and earlier["finished_at"] is None:
        raise UsageError(
            f"{earlier['id']} is at the same work: --resume takes it up, --overwrite starts another beside it"
        )
    upload = uploads[0] if uploads else client.upload(job.source)
    tell_problems(upload)
    # The same for everybody who starts the same work at the same time, and a new one once that has ended.
    key = json.dumps([upload["id"], asked, earlier and earlier["id"]], sort_keys=True)
    return client.submit(upload["id"], asked, key=hashlib.sha256(key.encode()).hexdigest())


def _count(output: Path, summary: Summary) -> None:
    """Add the rows of an output; they cost no tokens here."""
    with output.open("rb") as lines:
        for line in lines:
            if (row := read_file_row(line)) is None:
                raise ServiceError(f"{output} came with a line that is no output row: is the service of this version?")
            summary.add(row, Usage())
