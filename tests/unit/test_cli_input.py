"""What the command line does with the argument IN before any row is worked on."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.exceptions import InputFileError
from cli.input import count_rows
from tests.data_sets import write_data_set


def test_a_data_set_of_the_hub_is_not_fetched_whole_to_be_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_set(tmp_path / "org" / "name", {"main": {"train": ["a", "b"]}})
    monkeypatch.chdir(tmp_path)
    assert count_rows(Path("org/name/main"), None) is None
    with pytest.raises(InputFileError, match="BuilderConfig 'other' not found"):
        count_rows(Path("org/name/other"), None)
    assert capsys.readouterr().err == ""
