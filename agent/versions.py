"""Publishing a folder as the next version of a name: `NAME/VERSION`, which appears whole and is never changed.

Not here: how versions are named and found (`agent.adapters`), and what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.adapters import adapter_versions
from agent.disk import sync, sync_tree


def claim_version(staged: Path, folder: Path, card: str, describe: Callable[[int], str]) -> int:
    """Rename `staged`, its files read-only, to the first version in `folder` above all others; returns its number.

    Several processes may do so at once: each gets a version of its own.

    Args:
        staged: folder with all but the card, on the file system of `folder`.
        folder: of the name.
        card: name of the file in `staged` that says which version it is.
        describe: the card's content for a version.

    Raises:
        OSError: it cannot be written or renamed.
    """
    number = max(adapter_versions(folder), default=0)
    while True:
        number += 1
        (staged / card).unlink(missing_ok=True)  # of the version that another process was quicker to take
        (staged / card).write_text(describe(number), encoding="utf-8")
        for path in staged.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        sync_tree(staged)
        try:
            staged.rename(folder / str(number))
        except OSError:  # a rename never replaces a folder with files in it
            if not (folder / str(number)).exists():
                raise
            continue
        sync(folder)
        return number
