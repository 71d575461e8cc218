"""Claiming the next version: on the disk before it has its name, and never in the place of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.versions import claim_version
from tests.disk_log import assert_durable, disk_log


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").write_text("w")
    (tmp_path / "math").mkdir()
    return folder


def test_all_of_a_version_is_on_the_disk_before_its_name(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = disk_log(monkeypatch, tmp_path)
    assert claim_version(staged, tmp_path / "math", "card", str) == 1
    assert_durable(log, "math/1", "staged", "staged/card", "staged/inner", "staged/inner/weights")


def test_a_version_that_another_process_takes_meanwhile_stays_as_it_is(staged: Path, tmp_path: Path) -> None:
    other = tmp_path / "math" / "1" / "card"

    def describe(number: int) -> str:
        if number == 1:
            other.parent.mkdir()
            other.write_text("of the other process")
        return f"version {number}"

    assert claim_version(staged, tmp_path / "math", "card", describe) == 2
    assert other.read_text() == "of the other process"
    assert (tmp_path / "math" / "2" / "card").read_text() == "version 2"
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "math" / "2").rglob("*") if p.is_file()} == {0o444}
