"""Files that take the place of others."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from agent.disk import replacing, sync, sync_tree, write_whole
from tests.disk_log import disk_log


def test_a_file_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with replacing(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new"}


def test_what_fails_half_way_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "a.txt") as unfinished:
            unfinished.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_file_is_on_the_disk_before_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = disk_log(monkeypatch, tmp_path)
    write_whole(tmp_path / "a.txt", "\N{SNOWMAN}\n")
    assert log == [("sync", ".a.txt.unfinished"), ("rename", "a.txt"), ("sync", ".")]
    assert (tmp_path / "a.txt").read_bytes() == "\N{SNOWMAN}\n".encode()


def test_a_folder_is_synced_with_all_that_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("c")
    log = disk_log(monkeypatch, tmp_path)
    sync_tree(tmp_path / "a")
    assert sorted(log) == [("sync", "a"), ("sync", "a/b"), ("sync", "a/b/c")]


@pytest.mark.parametrize(("problem", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_its_file_system_does_not_sync_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int, passes: bool
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(problem, os.strerror(problem))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    if passes:
        write_whole(tmp_path / "a.txt", b"new")
        assert (tmp_path / "a.txt").read_bytes() == b"new"
    else:
        with pytest.raises(OSError, match=os.strerror(problem)):
            write_whole(tmp_path / "a.txt", b"new")


def test_a_file_that_cannot_be_synced_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, "no")

    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no"):
        sync(tmp_path / "a.txt")
