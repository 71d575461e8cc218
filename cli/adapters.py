"""`rewright adapters`: which adapters are published, and what one of them says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.exceptions import AdapterError
from cli import options
from cli.console import print_table, result_console, say

app = typer.Typer(help="List published adapters, or show one.", no_args_is_help=True, rich_markup_mode=None)

_COLUMNS = ("adapter", "base model", "reward", "held-out pass rate", "mismatch", "expert's", "created")


@app.command("list")
def list_adapters(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds NAME/VERSION.")] = Path("adapters"),
    as_json: options.AsJson = False,
) -> None:
    """The published adapters under a folder."""
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
