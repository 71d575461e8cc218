"""That one process at a time works in a folder: a lock that the system lets go when the process dies."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trainer.exceptions import FolderInUseError

LOCK = ".lock"

# What storage says that has no locks, as some that machines share: nothing can be told there, and nothing is refused.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def alone_in(folder: Path, output: Path) -> Iterator[None]:
    """Within: no other process works in `folder`, which is there.

    Args:
        folder: to work in.
        output: what it is called in the error.

    Raises:
        FolderInUseError: another process works in it.
        OSError: it cannot be written.
    """
    with (folder / LOCK).open("a") as file:
        lock(file, output)
        yield


def lock(file: IO[Any], output: Path) -> None:
    """Keep other processes off an open file of `output` until it is closed; it is closed where they have it.

    Raises:
        FolderInUseError: another process has it.
        OSError: it cannot be locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FolderInUseError(
            f"{output}: another process works in it; wait for its end or stop it, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            file.close()
            raise
