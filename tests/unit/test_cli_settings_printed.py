"""`rewright settings`: nothing is left out, and what it prints is a settings file that changes nothing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from agent.settings import Section
from cli.settings import Settings
from tests.command_line import run_main


def names(section: type[Section]) -> Iterator[tuple[str, str | None]]:
    """Name and description of every setting of a table and of all tables that may stand in it."""
    for name, field in section.model_fields.items():
        if inner := list(sections(field.annotation)):
            for one in inner:
                yield from names(one)
        else:
            yield name, field.description


def sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections(part)


def test_every_setting_is_printed_with_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_main(monkeypatch, capsys, "settings")
    lines = [line.removeprefix("# ") for line in out.splitlines()]
    expected = list(names(Settings))
    assert (code, len(expected) > 100) == (0, True)
    for name, description in expected:
        assert [line for line in lines if line.startswith(f"{name} = ") and line.endswith(description or "")], name
    printed = [line for line in lines if re.match(r"\w+ = (?!gate \*)", line)]  # a formula is told there too
    assert len(printed) == len(expected)


def test_what_is_printed_is_a_file_of_the_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run_main(monkeypatch, capsys, "settings")
    assert Settings.model_validate(tomllib.loads(out)) == Settings()


def test_one_table_is_printed_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_main(monkeypatch, capsys, "settings", "engine")
    assert [line for line in out.splitlines() if line.startswith("[")] == ["[engine]", "[engine.vllm]"]
    assert 'kind = "transformers"  # one of transformers, vllm' in out


def test_tables_with_names_of_ones_own_are_comments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run_main(monkeypatch, capsys, "settings", "rewrite.strategies")
    assert "# [[rewrite.strategies.NAME]]\n# proposer = (must be given)  # one of solve, hint, rewrite\n" in out


def test_an_unknown_table_is_wrong_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_main(monkeypatch, capsys, "settings", "gat")
    assert (code, out) == (2, "")
    assert "there are no settings 'gat': there are model, engine, gate" in err
