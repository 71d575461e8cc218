"""Where the bytes of files are kept: in a folder of this machine, or in a store that fsspec opens by its URL.

What is kept is whole: a folder gets it by a rename, a store when the upload of an object is complete.
Not here: what is known of files (`server.files`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast

from agent.disk import commit, replacing
from agent.exceptions import SettingsError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PROBE = "probe"


class Storage(Protocol):
    """Files by name. Methods block, and raise OSError."""

    def put(self, path: Path, name: str) -> None:
        """Take over a local file that is whole and on disk."""
        ...

    def fetch(self, name: str, spare: Path) -> Path:
        """A local file with the bytes: the kept one, or a copy at `spare`, made where it is not there yet."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file to read from any place of it; no more is fetched than is read, but for what a store reads ahead."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, where it is there."""
        ...

    def others(self, known: set[str]) -> int:
        """How many files are here that are not `known`, where only this service keeps any."""
        ...

    def check(self) -> None:
        """Write something now."""
        ...


def open_storage(url: str | None, folder: Path) -> Storage:
    """The store at `url`, else `folder`. Raises SettingsError."""
    return FolderStorage(folder) if url is None else UrlStorage(url)


class FolderStorage:
    """See `Storage`. The folder is there, and this service's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, path: Path, name: str) -> None:
        commit(path, self._folder / name)

    def fetch(self, name: str, spare: Path) -> Path:
        path = self._folder / name
        path.stat()  # what is gone is an error here, and not wherever it is opened
        return path

    def open(self, name: str) -> IO[bytes]:
        return (self._folder / name).open("rb")

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def others(self, known: set[str]) -> int:
        return sum(path.name not in known for path in self._folder.glob("file_*"))

    def check(self) -> None:
        """Nothing of its own: what arrives is written below this folder too."""


class UrlStorage:
    """See `Storage`. Others may keep their files in the same place.

    Raises:
        SettingsError: nothing can be kept at this URL.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self._store: AbstractFileSystem
            self._store, self._root = url_to_fs(url)
            self._store.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise SettingsError(f"server.files.url cannot be used: {error}") from error

    def put(self, path: Path, name: str) -> None:
        try:
            self._store.put_file(str(path), self._at(name))
        except Exception:
            with contextlib.suppress(Exception):
                self.delete(name)  # of a folder, half of it may be there
            raise
        path.unlink()

    def fetch(self, name: str, spare: Path) -> Path:
        if not spare.exists():
            with replacing(spare) as unfinished:
                self._store.get_file(self._at(name), str(unfinished))
        return spare

    def open(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], self._store.open(self._at(name), "rb"))

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._at(name))

    def others(self, known: set[str]) -> int:
        """None: what is not known here may be another service's, and a listing of a large store takes long."""
        return 0

    def check(self) -> None:
        self._store.pipe_file(self._at(_PROBE), b"?")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"
