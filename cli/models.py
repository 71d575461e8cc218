"""`rewright models`: which base models are on this machine, and fetching one."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from agent.embedded import EMBEDDED_NAME
from agent.models import fetched_models, home, resolve_model
from agent.settings import ModelSettings
from cli import options
from cli.console import fetching, print_table, result_console, say

app = typer.Typer(help="List base models, or fetch one.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_models(as_json: options.AsJson = False) -> None:
    """The models that are on this machine."""
    found = list(fetched_models())
    if as_json:
        print(json.dumps([{"name": m.name, "revision": m.revision, "path": str(m.path)} for m in found]))
        return
    rows = [(m.name, m.revision or "", m.path) for m in found]
    print_table(f"Models under {home()}", ("name", "revision", "path"), rows, to=result_console())
    if EMBEDDED_NAME not in {m.name for m in found}:
        say(f"{EMBEDDED_NAME} is fetched on first use, or now with: rewright models pull {EMBEDDED_NAME}")


@app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2-135m, or a hub id with --revision.")],
    revision: options.Revision = None,
) -> None:
    """Fetch a model, so that later runs need no network; prints its folder."""
    with fetching(name) as on_progress:
        files = resolve_model(ModelSettings(name=name, revision=revision), on_progress=on_progress)
    print(files.path)
