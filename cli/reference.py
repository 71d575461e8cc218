"""`rewright settings`: every setting, its default and what it is for, as TOML to take lines from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from agent.settings import Section
from cli.exceptions import UsageError
from cli.settings import Settings


def settings(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="Only this table of settings, gate or server.limits.")
    ] = None,
) -> None:
    """Print all settings with their defaults, as TOML for --config.

    What is unset (None) by default, and tables that are not there unless they are given, stand there as comments.
    What files, variables and flags come to is printed by --dry-run of the command that is meant.
    """
    found = [lines for path, lines in _tables((), Settings) if table is None or f"{path}.".startswith(f"{table}.")]
    if not found:
        raise UsageError(f"there are no settings {table!r}: there are {', '.join(Settings.model_fields)}")
    print("\n\n".join("\n".join(lines) for lines in found))


def _tables(path: tuple[str, ...], section: type[Section], mark: str = "") -> Iterator[tuple[str, list[str]]]:
    """Path and lines of the table of `section`, and then of those below it.

    Args:
        path: keys of the table; NAME for one that whoever writes the file chooses.
        section: what may stand in it.
        mark: `# ` where the table is there only if it is given.
    """
    own: list[str] = []
    below: list[tuple[str, list[str]]] = []
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = _section_in(field.annotation)
        if inner is None:
            is_choice = get_origin(field.annotation) is Literal
            choices = f"one of {', '.join(map(str, get_args(field.annotation)))}" if is_choice else ""
            told = "; ".join(filter(None, (choices, field.description)))
            value = "(unset)" if default is None else "(must be given)" if field.is_required() else json.dumps(default)
            hidden = mark or ("# " if value.startswith("(") else "")
            own.append(f"{hidden}{name} = {value}{f'  # {told}' if told else ''}")
        elif isinstance(default, Section):
            below += _tables((*path, name), inner, mark)
        else:
            below += _tables((*path, name, *(["NAME"] if get_origin(field.annotation) is dict else [])), inner, "# ")
    if own:
        about = (section.__doc__ or "").split("\n")[0]
        yield ".".join(path), [f"# {about}", f"{mark}{_header(path)}", *own]
    yield from below


def _header(path: tuple[str, ...]) -> str:
    # A strategy is a list of steps, so that its table may come again.
    return f"[[{'.'.join(path)}]]" if path[:2] == ("rewrite", "strategies") else f"[{'.'.join(path)}]"


def _section_in(annotation: Any) -> type[Section] | None:
    """The settings that values of this type are made of, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
