"""`rewright adapters`: which adapters are published, what one says of itself, and which one a service uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.exceptions import AdapterError
from cli import options
from cli.console import print_table, result_console, say
from cli.exceptions import UsageError

app = typer.Typer(
    help="List published adapters, show one, or have a service use it.", no_args_is_help=True, rich_markup_mode=None
)

_DEFAULT_FOLDER = Path("adapters")
_COLUMNS = ("adapter", "base model", "reward", "held-out pass rate", "mismatch", "expert's", "created")


@app.command("list")
def list_adapters(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Holds NAME/VERSION. [adapters]")] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="List those of this service.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """The published adapters under a folder, or of a running service."""
    if url is not None:
        if folder is not None:
            raise UsageError("DIR and --url exclude each other: the service has its own folder")
        _list_of_service(url, as_json)
        return
    _list_folder(folder or _DEFAULT_FOLDER, as_json)


def _list_folder(folder: Path, as_json: bool) -> None:
    from agent.adapters import published_adapters, read_card

    cards: list[dict[str, Any]] = []
    for path in published_adapters(folder):
        try:
            cards.append({"path": str(path), **read_card(path)})
        except AdapterError as error:
            say(f"left out: {error}")
    if as_json:
        print(json.dumps(cards))
    else:
        print_table(f"Adapters under {folder}", _COLUMNS, [_row(card) for card in cards], to=result_console())


def _list_of_service(url: str, as_json: bool) -> None:
    from cli.client import api_key
    from cli.service import ask_service

    answer = ask_service(url, api_key(), "GET", "/v1/adapters", fields=("data", "default"))
    if as_json:
        print(json.dumps(answer))
        return
    rows = [
        (
            f"{adapter['name']}@{version['version']}",
            version["base_model"] or "",
            "active" if version["version"] == adapter["active"] else "",
            "loaded" if version["loaded"] else "",
        )
        for adapter in answer["data"]
        for version in adapter["versions"]
    ]
    print_table(f"Adapters of {url}", ("adapter", "base model", "", ""), rows, to=result_console())
    say(f"without `adapter`, requests get {answer['default'] or 'none'}")


@app.command("activate")
def activate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a published adapter.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Its number; an older one goes back.")],
    url: Annotated[str, typer.Option("--url", metavar="URL", help="The service.")],
    as_json: options.AsJson = False,
) -> None:
    """Have a running service use a version for new requests, without a restart.

    Requests in flight finish on the version with which they began.
    """
    from agent.adapters import is_name
    from cli.client import api_key
    from cli.service import ask_service

    if not is_name(name):
        raise UsageError(f"{name!r} is no name of an adapter")
    path = f"/v1/adapters/{name}/activate"
    answer = ask_service(url, api_key(), "POST", path, {"version": version}, fields=("active", "previous"))
    if as_json:
        print(json.dumps(answer))
        return
    before = f"{name}@{answer['previous']}" if answer["previous"] else "none"
    say(f"{name}@{answer['active']} is active at {url}, before it was {before}")


@app.command("show")
def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="NAME, NAME/VERSION or NAME@VERSION under its folder.")],
    as_json: options.AsJson = False,
) -> None:
    """What is known of one adapter: its base model, data, settings and held-out scores."""
    from agent.adapters import find_adapter, read_card, read_config

    path = find_adapter(path)
    card = read_card(path)
    if as_json:
        print(json.dumps({"path": str(path), **card}))
        return
    out = result_console()
    config = read_config(path)
    data = _table(card, "data")
    facts = {
        "folder": path,
        "base model": card["base_model"],
        "base weights": card.get("base_revision", ""),
        "LoRA": f"rank {config.get('r')}, alpha {config.get('lora_alpha')}",
        "data": f"{data.get('file', '')}, {data.get('rows', '?')} rows",
        "data SHA-256": data.get("sha256", ""),
        "reward": card.get("reward", ""),
        "step": card.get("step", ""),
        "created": card.get("created", ""),
        **{f"{name} version": number for name, number in _table(card, "versions").items()},
    }
    print_table(f"{card['name']}@{card['version']}", ("", ""), list(facts.items()), to=out)
    scores = [(name, _figure(value)) for name, value in _table(card, "held_out").items()]
    print_table("Held-out rows", ("measured", "value"), scores, to=out)


def _row(card: dict[str, Any]) -> tuple[object, ...]:
    scores = _table(card, "held_out")
    return (
        f"{card['name']}@{card['version']}",
        card["base_model"],
        card.get("reward", ""),
        *(_figure(scores.get(name)) for name in ("pass_rate", "mismatch", "expert_mismatch")),
        str(card.get("created", ""))[:16].replace("T", " "),
    )


def _table(card: dict[str, Any], field: str) -> dict[str, Any]:
    """A part of the card; a card from elsewhere may hold anything there."""
    value = card.get(field)
    return value if isinstance(value, dict) else {}


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else ""
