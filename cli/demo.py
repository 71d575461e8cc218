"""`rewright demo`: the shipped demonstrations through a service on Ray, then fine-tuning on what came of them."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape

from cli.console import console, fetching, say
from cli.exceptions import ServiceError, UsageError
from cli.settings import load_settings
from server.ports import free_port

T = TypeVar("T")

_EXAMPLES = Path(__file__).parents[1] / "examples"
_DEMONSTRATIONS = _EXAMPLES / "demonstrations.jsonl"
# Questions that the demonstrations do not ask.
_QUESTIONS = _EXAMPLES / "seed_rewrites.jsonl"
# The agent for the embedded model, trained by `examples/train-smollm2.toml`.
_ADAPTER = _EXAMPLES / "adapters" / "math"
_START_PATIENCE_S = 600.0
_STOP_PATIENCE_S = 180.0
_PAIRS_SHOWN = 3


def demo(
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where results and logs go.")] = Path("out"),
) -> None:
    """The whole story on the embedded model.

    Starts a service on Ray with the shipped agent, has it rewrite the shipped demonstrations over HTTP, shows what came
    of them, and fine-tunes the model on them before and after.
    """
    if not _DEMONSTRATIONS.is_file():
        raise UsageError(f"{_DEMONSTRATIONS} is missing: the demo runs from a checkout of the project")
    from agent.models import resolve_model
    from cli.demo_tuning import tune_and_compare
    from cli.output import Job
    from cli.rewrite import rewrite_there

    settings = load_settings(None, os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "demo.jsonl"
    say(f"1. The model: {settings.model.name}")
    with fetching(settings.model.name) as on_progress:
        resolve_model(settings.model, on_progress=on_progress)
    log = folder / "demo-service.log"
    key = secrets.token_urlsafe(32)
    say(f"2. The service: FastAPI on Ray Serve (its log: {log})")
    with _service(log, key, folder / "demo-state") as (url, service):
        say(f"3. The work: {_DEMONSTRATIONS.name} over HTTP to {url}")
        job = Job(_DEMONSTRATIONS, output, overwrite=True)
        work = rewrite_there(settings, job, url, key, _START_PATIENCE_S)
        summary = asyncio.run(_unless_it_ends(work, service, log))
    summary.print()
    _print_pairs(output)
    say("5. What it is for: fine-tuning on the experts' words, and on the rewritten rows")
    tune_and_compare(settings, _DEMONSTRATIONS, output, _QUESTIONS, folder)
    say(f"All rows are in {output}")


@contextmanager
def _service(log: Path, key: str, state: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Within: `rewright serve` runs on a free port; yields its address."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "cli.main", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        service = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={
                "REWRIGHT_REWRITE__ADAPTER": str(_ADAPTER),
                **os.environ,
                "REWRIGHT_API_KEYS": key,
                "REWRIGHT_SERVER__STATE": str(state),
            },
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )
        try:
            yield f"http://127.0.0.1:{port}", service
        finally:
            say("4. The end: the service finishes and stops")
            service.terminate()
            try:
                service.wait(_STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()


async def _unless_it_ends(work: Coroutine[Any, Any, T], service: subprocess.Popen[bytes], log: Path) -> T:
    """Result of `work`. Raises ServiceError when the service ends before."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=0.5))[0]:
            if service.poll() is not None:
                said = log.read_text(errors="replace").strip().splitlines()[-15:]
                raise ServiceError("\n".join([f"the service ended with exit code {service.returncode}:", *said]))
        return await task
    finally:
        task.cancel()


def _print_pairs(output: Path) -> None:
    """The accepted rewrites that came furthest towards the base model, beside what the expert wrote."""
    from agent.demonstrations import Demonstration
    from agent.intake import read_rows
    from agent.records import ACCEPTED

    experts = {row.id: row.expert for row in read_rows(_DEMONSTRATIONS) if isinstance(row, Demonstration)}
    with output.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    accepted = [row for row in rows if row["status"] in ACCEPTED]
    accepted.sort(key=lambda row: row["mismatch"]["target"]["nll"] - row["mismatch"]["expert"]["nll"])
    for row in accepted[:_PAIRS_SHOWN]:
        before, after = row["mismatch"]["expert"]["nll"], row["mismatch"]["target"]["nll"]
        console.rule(f"{escape(row['id'])} ({row['proposer']})")
        say(f"question: {row['prompt'][-1]['content']}\n")
        say(f"expert, {before:.2f} nats/token: {experts[row['id']]}\n")
        say(f"rewrite, {after:.2f} nats/token: {row['completion'][0]['content']}")
