"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Input = Annotated[
    Path, typer.Argument(metavar="IN", help="JSONL, JSON array, Parquet or datasets folder; - for standard input.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="File to write.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="M", help="smollm2-135m, a folder, or a hub id with --revision.")
]
Revision = Annotated[str | None, typer.Option("--revision", metavar="COMMIT", help="Commit of a hub id.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="TOML", help="Settings file.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Read the first N rows only.")]
MaxErrors = Annotated[int, typer.Option("--max-errors", min=0, metavar="N", help="Rows that may fail.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings as JSON and stop.")]
