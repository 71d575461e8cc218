"""The settings tree, and where each setting comes from: defaults < TOML file < environment < flags.

An environment variable names a setting with its path, `REWRIGHT_ENGINE__DTYPE` for `engine.dtype`; a value that
is no single word is written as JSON. Variables without a double underscore are not settings.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.exceptions import SettingsError
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings, Section
from server.settings import ServerSettings
from trainer.compare.settings import CompareSettings
from trainer.exam.settings import EvaluateSettings
from trainer.settings import TrainSettings
from trainer.sft.settings import SftSettings

_PREFIX = "REWRIGHT_"


class Settings(Section):
    """Everything that can be set."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    gate: GateSettings = GateSettings()
    rewrite: RewriteSettings = RewriteSettings()
    train: TrainSettings = TrainSettings()
    sft: SftSettings = SftSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    compare: CompareSettings | None = None
    server: ServerSettings = ServerSettings()


@dataclass(frozen=True, slots=True)
class Given:
    """One value that somebody gave: for which setting, and where."""

    path: tuple[str, ...]
    value: Any
    source: str

    @classmethod
    def by_flag(cls, setting: str, flag: str, value: Any) -> Given:
        """`setting` with dots, as in `engine.dtype`. A value of None means that the flag was not used."""
        return cls(tuple(setting.split(".")), value, flag)


def load_settings(config: Path | None, environment: Mapping[str, str], flags: Iterable[Given] = ()) -> Settings:
    """Resolve the settings.

    Args:
        config: TOML file, None for none.
        environment: of the process.
        flags: in the order of the command line; those with value None are left out.

    Raises:
        SettingsError: the file cannot be read, or a value makes no sense; names the setting and its source.
    """
    given = [*(_from_toml(config) if config else ()), *_from_environment(environment)]
    given += [flag for flag in flags if flag.value is not None]
    tree: dict[str, Any] = {}
    for item in given:
        _put(tree, item.path, item.value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem, given) for problem in _causes(error.errors()))) from error


def _from_toml(file: Path) -> Iterator[Given]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"--config {file}: {reason}") from error
    yield from _leaves((), tables, str(file))


def _leaves(path: tuple[str, ...], table: dict[str, Any], source: str) -> Iterator[Given]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves((*path, key), value, source)
        else:
            yield Given((*path, key), value, source)


def _from_environment(environment: Mapping[str, str]) -> Iterator[Given]:
    for name, text in sorted(environment.items()):
        if name.startswith(_PREFIX) and "__" in name:
            path = tuple(name.removeprefix(_PREFIX).lower().split("__"))
            yield Given(path, _parse(name, text), name)


def _parse(name: str, text: str) -> Any:
    if not text.startswith(("[", "{")) and text != "null":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{name}: looks like JSON but is not: {error}") from error


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value


def _causes(problems: list[Any]) -> list[Any]:
    """Without lists that pydantic calls too short only because it has left out an item that is wrong itself."""

    def follows(problem: Any) -> bool:
        where = problem["loc"]
        return problem["type"] == "too_short" and any(
            other["loc"][: len(where)] == where for other in problems if other is not problem
        )

    return [problem for problem in problems if not follows(problem)]


def _explain(problem: Any, given: list[Given]) -> str:
    """One line for one pydantic error: setting, what is wrong with it, and who gave it, or the rest of its table."""
    where = tuple(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    near = where
    if problem["type"] == "missing":
        what, near = "is missing: it has no default", where[:-1]
    elif problem["type"] == "extra_forbidden":
        what = "there is no such setting"
    elif problem["type"] != "value_error":
        what += f", got {str(problem['input'])[:80]!r}"
    sources = [g.source for g in given if g.path[: len(near)] == near or near[: len(g.path)] == g.path]
    return f"setting {'.'.join(where)}: {what} (from {', '.join(dict.fromkeys(sources)) or 'the defaults'})"
