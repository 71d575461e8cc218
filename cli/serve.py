"""`rewright serve`: the HTTP service, on Ray or in this process."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cli import options
from cli.console import fetching, say
from cli.settings import Given, load_settings


def serve(
    host: Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Address to bind to.")] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="Port to listen on.")] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    local: Annotated[bool, typer.Option("--local", help="Without Ray, engine in this process.")] = False,
    config: options.Config = None,
    dry_run: options.DryRun = False,
) -> None:
    """Serve rewriting over HTTP.

    Runs until interrupted; what is in flight is finished first.
    """
    settings = load_settings(
        config,
        os.environ,
        [
            Given.by_flag("server.host", "--host", host),
            Given.by_flag("server.port", "--port", port),
            Given.by_flag("model.name", "--model", model),
            Given.by_flag("model.revision", "--revision", revision),
        ],
    )
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    from agent.models import resolve_model

    with fetching(settings.model.name) as on_progress:
        resolve_model(settings.model, on_progress=on_progress)
    if local:
        from server.local import serve_local as run
    else:
        from server.run import serve as run
    run(settings.model, settings.engine, settings.gate, settings.rewrite, settings.server, say)
