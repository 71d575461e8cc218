"""`rewright keys`: API keys of the service on this machine, in its state folder or database."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.console import print_table, result_console, say
from cli.exceptions import UsageError
from cli.settings import load_settings

if TYPE_CHECKING:
    from server.keys import KeyStore

app = typer.Typer(
    help="Make, list and revoke API keys, where the service runs: in its database, not by its URL.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COLUMNS = ("key", "name", "scopes", "state", "created", "expires")
_NAME_LENGTH = 64


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, for the list.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", metavar="S", help="rewrite, train, metrics or admin.")
    ] = None,
    days: Annotated[
        int | None, typer.Option("--expires-days", min=1, max=36500, metavar="N", help="Days it is good for.")
    ] = None,
    config: options.Config = None,
) -> None:
    """Make a key and print it: this once, it is not kept. Its scope is rewrite unless --scope says otherwise."""
    from server.keys import SCOPES
    from server.settings import DAY_S

    chosen = [known for known in SCOPES if known in (scope or ["rewrite"])]
    if unknown := set(scope or ()) - set(SCOPES):
        raise UsageError(f"--scope {', '.join(sorted(unknown))}: there are {', '.join(SCOPES)}")
    if not 0 < len(name) <= _NAME_LENGTH or not name.isprintable():
        raise UsageError(f"NAME must have 1 to {_NAME_LENGTH} printable characters")
    with _store(config) as store:
        key, text = store.create(name, chosen, expires_at=int(time.time()) + days * DAY_S if days else None)
    print(text)
    say(f"key {key.id} for {name}, {', '.join(key.scopes)}: keep it now, it will not be shown again")


@app.command("list")
def list_keys(config: options.Config = None, as_json: options.AsJson = False) -> None:
    """All keys, without what would let anybody in."""
    with _store(config) as store:
        keys = store.all()
    if as_json:
        print(json.dumps([{**asdict(key), "state": key.state} for key in keys]))
        return
    rows = [
        (key.id, key.name, ", ".join(key.scopes), key.state, _day(key.created_at), _day(key.expires_at)) for key in keys
    ]
    print_table("API keys", _COLUMNS, rows, to=result_console())


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, as in the list.")],
    config: options.Config = None,
) -> None:
    """Let a key pass no more, from the next request on."""
    with _store(config) as store:
        store.revoke(key_id)
    say(f"key {key_id} is revoked")


@contextmanager
def _store(config: options.Config) -> Iterator[KeyStore]:
    """The keys where the settings say."""
    from server.keys import KeyStore
    from server.state import Database

    database = Database(load_settings(config, os.environ).server)
    try:
        yield KeyStore(database)
    finally:
        database.close()


def _day(seconds: int | None) -> str:
    if seconds is None:
        return "never"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):  # of a key that an earlier release made
        return "beyond 9999"
