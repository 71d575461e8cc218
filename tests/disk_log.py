"""What reaches the disk, in order: no test can cut the power, but it can see what such a cut would tear apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

Event = tuple[str, str]


def disk_log(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[Event]:
    """A list that grows by what is synced, renamed (to its new name) and unlinked under `root`; `.` is `root`."""
    log: list[Event] = []

    def note(kind: str, path: Any) -> None:
        log.append((kind, str(Path(path).relative_to(root))))

    fsync, unlink = os.fsync, os.unlink

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))

    def unlinked(path: Any, **options: Any) -> None:
        unlink(path, **options)
        if not options.get("dir_fd"):
            note("unlink", path)

    def renaming(name: str) -> None:
        rename = getattr(os, name)

        def renamed(source: Any, target: Any) -> None:
            rename(source, target)
            note("rename", target)

        monkeypatch.setattr(os, name, renamed)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "unlink", unlinked)
    renaming("rename")
    renaming("replace")
    return log


def assert_durable(log: Sequence[Event], path: str, *content: str) -> None:
    """`content` was on the disk before something took the name `path`, and then the folder with that name."""
    renamed = log.index(("rename", path))
    assert set(content) <= {name for kind, name in log[:renamed] if kind == "sync"}
    assert log[renamed + 1] == ("sync", str(Path(path).parent))
