"""Having files on the disk, where a power cut does not reach them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk; a folder only where that can be asked for. Raises OSError."""
    try:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        # A folder may be one to write to but not to read, and some file systems, as shared folders, sync files alone.
        if error.errno not in (errno.EACCES, errno.EINVAL) or not path.is_dir():
            raise


def sync_tree(folder: Path) -> None:
    """Have a folder with all that is in it on the disk, so that no rename is there before what it names.

    Raises:
        OSError: it cannot be written.
    """
    for path in (*folder.rglob("*"), folder):
        sync(path)


def commit(unfinished: Path, path: Path) -> None:
    """Give a file or a folder that is already on the disk its final name, durably. Raises OSError."""
    os.replace(unfinished, path)
    sync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within: where to write a file that then takes the place of `path`, whole and on the disk; if that fails, no more
    is left of it than before. One process at a time may do so for a path.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        sync(unfinished)
        commit(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, text as UTF-8, that is then whole and on the disk; if that fails, as `replacing`.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
