"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STANDARD_OUTPUT = Path("-")


def _unless_dash(output: Path | None) -> Path | None:
    return None if output == STANDARD_OUTPUT else output


Input = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="JSONL, JSON array, Parquet, datasets folder, "
        "or org/name[/config][:split] of the hub; - for standard input.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="OUT", callback=_unless_dash, help="File to write; - for standard output."),
]
Lines = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        callback=_unless_dash,
        help="JSON lines to write, replaced if they are there; - for standard output.",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="M", help="smollm2-135m, a folder, or a hub id with --revision.")
]
Revision = Annotated[str | None, typer.Option("--revision", metavar="COMMIT", help="Commit of a hub id.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="TOML", help="Settings file.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Read the first N rows only.")]
MaxErrors = Annotated[int, typer.Option("--max-errors", min=0, metavar="N", help="Rows that may come out as errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings as JSON and stop.")]

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Ray = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run as a job of this Ray cluster, http://head:8265.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, metavar="N", help="Processes, with --ray. [1]")]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, metavar="N", help="Cores a process, with --ray. [1]")]
Gpus = Annotated[int | None, typer.Option("--gpus", min=0, metavar="N", help="GPUs a process, with --ray. [0]")]
Detach = Annotated[bool, typer.Option("--detach", help="Submit, print the job's id and return.")]
Job = Annotated[str | None, typer.Option("--job", metavar="ID", help="Follow this job instead.")]
Stop = Annotated[bool, typer.Option("--stop", help="Stop the job --job.")]
Status = Annotated[bool, typer.Option("--status", help="Print the status of the job --job.")]
