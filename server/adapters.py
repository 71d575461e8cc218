"""The adapters that a service offers: published versions in one folder, and which of each name is active.

What is active is a file `NAME/active` beside the versions, replaced by a rename: every process that looks sees the
same, and a restart changes nothing. Clients name adapters, never paths.
Not here: loading them into engines (`server.hosting`), switching (`server.backend`), publishing (`trainer.publish`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.adapters import (
    AdapterFiles,
    adapter_versions,
    find_adapter,
    is_name,
    open_adapter,
    read_card,
    split_version,
)
from agent.disk import commit, sync
from agent.exceptions import AdapterError
from server.exceptions import UnavailableError, UnknownNameError

ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One version; `base_model` is None when its card cannot be read."""

    version: int
    base_model: str | None


class AdapterStore:
    """Reads the folder anew each time it is asked: what is published while the service runs is there at once.

    Args:
        folder: holds `NAME/VERSION`; None for a service without published adapters.
        default: what requests get that name no adapter: one of the folder, or an adapter's own folder elsewhere.
        model: name of the base model.

    Raises:
        AdapterError: `default` is neither of the two, or is broken.
    """

    def __init__(self, folder: Path | None = None, default: str | None = None, model: str = "") -> None:
        self._folder = folder
        self._default = default
        self._fixed: AdapterFiles | None = None
        if default is not None and not self._is_published(default):
            self._fixed = self._open_elsewhere(default, model)
            self._default = self._fixed.name
        elif default is not None and split_version(default) == (default, None) and self.active(default) is None:
            # Of a name that was never activated, somebody has to make the first version active.
            self.activate(default, self.versions(default)[-1])

    def names(self) -> list[str]:
        """Names with at least one version."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(p.name for p in self._folder.iterdir() if is_name(p.name) and adapter_versions(p))

    def versions(self, name: str) -> list[int]:
        """Ascending. Raises UnknownNameError when there are none."""
        versions = adapter_versions(self._folder / name) if self._folder and is_name(name) else []
        if not versions:
            raise self._unknown(name)
        return versions

    def published(self, name: str) -> list[PublishedVersion]:
        """What is known of every version. Raises UnknownNameError."""
        return [PublishedVersion(version, self._base_model(name, version)) for version in self.versions(name)]

    def active(self, name: str) -> int | None:
        """The active version; None when there is none, or it is gone. Raises UnknownNameError."""
        versions = self.versions(name)
        try:
            text = (self._path(name) / ACTIVE).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return next((version for version in versions if str(version) == text), None)

    def activate(self, name: str, version: int) -> None:
        """Make a version the one that new requests for `name` get.

        Raises:
            UnknownNameError: there is no such version.
            UnavailableError: the folder cannot be written to.
        """
        self.require(name, version)
        folder = self._path(name)
        try:
            # Not `replacing`: several processes may do this at once, and would write one file.
            with tempfile.TemporaryDirectory(prefix=f".{ACTIVE}-", dir=folder) as unfinished:
                file = Path(unfinished) / ACTIVE
                file.write_text(f"{version}\n", encoding="ascii")
                sync(file)
                commit(file, folder / ACTIVE)
        except OSError as error:
            raise UnavailableError(
                f"which version of {name!r} is active cannot be written: {error.strerror}", code="store_not_writable"
            ) from error

    def require(self, name: str, version: int) -> str:
        """`name@version`. Raises UnknownNameError when there is no such version."""
        if version not in (versions := self.versions(name)):
            raise UnknownNameError(
                f"adapter {name!r} has no version {version}; there are {_listed(versions)}",
                code="unknown_version",
                param="version",
            )
        return f"{name}@{version}"

    def resolve(self, asked: str | None) -> str | None:
        """The adapter that a request means, as records name it; None for the base model alone.

        Args:
            asked: `name` for its active version, `name@version`, or None for the default.

        Raises:
            UnknownNameError: there is no such adapter or version, or no version is active.
        """
        asked = asked if asked is not None else self._default
        if asked is None or (self._fixed is not None and asked == self._fixed.name):
            return asked
        try:
            return self._published_as(asked)
        except UnknownNameError as error:
            raise UnknownNameError(str(error), code=error.code, param="adapter") from None

    def path_of(self, adapter: str) -> Path:
        """The folder of what `resolve` answered. Raises AdapterError when it is not there."""
        if self._fixed is not None and adapter == self._fixed.name:
            return self._fixed.path
        name, version = split_version(adapter) or ("", None)
        if self._folder is None or version is None:
            raise AdapterError(f"adapter {adapter!r} is not one of this service")
        return find_adapter(self._path(name) / str(version))

    def wanted(self) -> list[str]:
        """What an engine should have loaded before anybody asks: the default first, then what is active."""
        wanted = [self.resolve(None)]
        wanted += [f"{name}@{version}" for name in self.names() if (version := self.active(name)) is not None]
        return list(dict.fromkeys(adapter for adapter in wanted if adapter is not None))

    def without_paths(self, message: str) -> str:
        """A message about an adapter as clients may see it: where the folder lies is not their business."""
        return message.replace(f"{self._folder}/", "") if self._folder else message

    def _published_as(self, asked: str) -> str:
        """`name@version` of a published adapter. Raises UnknownNameError."""
        if (parts := split_version(asked)) is None:
            raise self._unknown(asked)
        name, version = parts
        if version is None and (version := self.active(name)) is None:
            versions = self.versions(name)
            raise UnknownNameError(
                f"adapter {name!r} has no active version; activate one of {_listed(versions)}, "
                f"or ask for one as '{name}@{versions[-1]}'",
                code="no_active_version",
            )
        return self.require(name, version)

    def _is_published(self, text: str) -> bool:
        parts = split_version(text)
        return parts is not None and self._folder is not None and parts[0] in self.names()

    def _open_elsewhere(self, default: str, model: str) -> AdapterFiles:
        try:
            return open_adapter(Path(default), model)
        except AdapterError as error:
            where = f"; nor is it the name of one in {self._folder}" if self._folder else ""
            raise AdapterError(f"rewrite.adapter {default!r}: {error}{where}") from error

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        assert is_name(name)
        return self._folder / name

    def _base_model(self, name: str, version: int) -> str | None:
        try:
            return str(read_card(self._path(name) / str(version))["base_model"])
        except AdapterError:
            return None

    def _unknown(self, asked: str) -> UnknownNameError:
        known = [*([self._fixed.name] if self._fixed else []), *self.names()]
        return UnknownNameError(
            f"unknown adapter {asked!r}; there are {_listed(known) or 'none'}", code="unknown_adapter", param="name"
        )


def _listed(items: list[str] | list[int]) -> str:
    """The first few, so that a message stays one."""
    return ", ".join(str(item) for item in items[:20]) + (" ..." if len(items) > 20 else "")
