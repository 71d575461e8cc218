"""Files of the service: uploads and the results of jobs, kept by `server.storage` and described in the database.

Names of what is kept are made here from random ids; nothing of a client's choosing becomes a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, get_args

import sqlalchemy as sa

from server.exceptions import ApiError, ConflictError, TooLargeError, UnavailableError, UnknownNameError
from server.files_check import FileFormat, Finding, UploadCheck
from server.settings import DAY_S, FileSettings, RetentionSettings, expiry
from server.state import Database, jobs
from server.state import files as table
from server.storage import open_storage
from server.threads import to_its_end

FILE_ID = re.compile(r"file_[0-9a-f]{24}", re.ASCII)
ACTIVE = ("validating", "in_progress", "finalizing", "cancelling")

Purpose = Literal["input", "output", "errors"]

_log = logging.getLogger("rewright.server")
_CHUNK = 1 << 20
_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file. `problems` are the first of the unreadable rows; `created_at` is in seconds since 1970."""

    id: str
    purpose: str
    filename: str
    format: str
    bytes: int
    sha256: str
    rows: int
    unreadable_rows: int
    problems: list[dict[str, Any]]
    created_at: int

    def as_dict(self, retention: RetentionSettings) -> dict[str, Any]:
        """The file as clients see it."""
        expires_at = expiry(self.created_at, retention.file_days(self.purpose))
        return {"object": "file", **asdict(self), "expires_at": expires_at}


class Incoming(Protocol):
    """An upload: its bytes, and what the client calls it, which is known when the bytes have come."""

    filename: str

    def chunks(self) -> AsyncIterator[bytes]: ...


class FileStore:
    """The files that a service knows. Methods that are not coroutines block.

    Args:
        database: describes them.
        folder: what arrives is written here, and kept where the settings name no other place; made here.
        settings: bounds of an upload, and where files are kept.
        retention: how long a file is kept.

    Raises:
        SettingsError: nothing can be kept where the settings say.
    """

    def __init__(self, database: Database, folder: Path, settings: FileSettings, retention: RetentionSettings) -> None:
        self._database, self._settings, self._retention = database, settings, retention
        self._incoming = folder / "incoming"
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._storage = open_storage(settings.url, folder)

    def check(self) -> None:
        """Write where files arrive and where they are kept, now. Raises UnavailableError."""
        try:
            with tempfile.TemporaryFile(dir=self._incoming) as probe:
                probe.write(b"?")
                probe.flush()
            self._storage.check()
        except OSError as error:
            raise _storage_failure(error) from error

    def sweep(self) -> None:
        """Remove what a process left behind that was killed while a file came in.

        A file that is kept and not known stays: another database may know it, as where a backup was restored.
        """
        for path in self._incoming.iterdir():
            path.unlink()
        names = sa.select(table.c.id, table.c.format)
        known = {f"{row.id}.{row.format}" for row in self._database.do(lambda c: c.execute(names).all())}
        if others := self._storage.others(known):
            _log.warning(
                "%d files in %s are not in this database, and are left there: another database, as that of "
                "before a change of server.database, may know them; delete them where none does",
                others,
                self._incoming.parent,
            )

    async def receive(self, incoming: Incoming) -> StoredFile:
        """Take in an upload.

        Raises:
            TooLargeError: it has more bytes than allowed.
            FileFormatError: it is neither JSON lines nor Parquet.
            UnavailableError: the disk is full or failing.
        """
        file_id = f"file_{secrets.token_hex(12)}"
        path = self._incoming / file_id
        check, digest, size = UploadCheck(self._settings.parquet_bytes), hashlib.sha256(), 0

        def take(chunk: bytes) -> None:
            digest.update(chunk)
            opened.write(chunk)
            check.feed(chunk)

        def finish() -> Finding:
            opened.flush()
            os.fsync(opened.fileno())
            return check.finish(path)

        try:
            with path.open("xb") as opened:
                async for chunk in _gathered(incoming.chunks()):
                    size += len(chunk)
                    if size > self._settings.upload_bytes:
                        raise TooLargeError(
                            f"the file is longer than {self._settings.upload_bytes} bytes: send it in parts",
                            code="file_too_large",
                            param="file",
                        )
                    await to_its_end(take, chunk)
                finding = await asyncio.to_thread(finish)
            stored = _describe(file_id, "input", incoming.filename, finding, size, digest.hexdigest())
            await to_its_end(self._keep, path, stored)
        except OSError as error:
            if isinstance(error, ApiError):
                raise
            raise _storage_failure(error) from error
        finally:
            path.unlink(missing_ok=True)
        return stored

    def adopt(
        self, path: Path, file_id: str, purpose: Purpose, filename: str, rows: int, file_format: FileFormat = "jsonl"
    ) -> StoredFile:
        """Take over a file that is whole and on disk. Doing it again changes nothing; with other content, it replaces.

        Args:
            path: is moved, unless its content is known.
            file_id: the same every time for the same thing.
            purpose: what it is.
            filename: a label.
            rows: lines in it.
            file_format: JSON lines, or `json` for one object.
        """
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        with contextlib.suppress(UnknownNameError):
            # Of a job whose end could not be written down there may be fewer rows than it has made since.
            if (known := self.get(file_id)).sha256 == digest.hexdigest():
                return known
        stored = _describe(file_id, purpose, filename, Finding(file_format, rows), size, digest.hexdigest())
        self._keep(path, stored)
        return stored

    def get(self, file_id: str) -> StoredFile:
        """The file of that id. Raises UnknownNameError."""
        query = sa.select(table).where(table.c.id == file_id)
        row = self._database.do(lambda c: c.execute(query).one_or_none()) if FILE_ID.fullmatch(file_id) else None
        if row is None:
            raise _unknown(file_id)
        return StoredFile(**row._mapping)

    def page(self, limit: int, after: str | None) -> tuple[list[StoredFile], bool]:
        """Files, newest first, those after file `after`; and whether there are more. Raises UnknownNameError."""
        query = sa.select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
        if after is not None:
            last = self.get(after)
            query = query.where(
                sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(sa.literal(last.created_at), sa.literal(last.id))
            )
        rows = self._database.do(lambda c: c.execute(query).all())
        return [StoredFile(**row._mapping) for row in rows[:limit]], len(rows) > limit

    def expired(self, now: float, limit: int) -> list[str]:
        """Ids of files that have expired at `now` and that no unfinished job reads, oldest first."""
        read = sa.exists().where(jobs.c.input_file == table.c.id, jobs.c.status.in_(ACTIVE))
        old = [
            sa.and_(table.c.purpose == purpose, table.c.created_at <= now - days * DAY_S)
            for purpose in get_args(Purpose)
            if (days := self._retention.file_days(purpose)) is not None
        ]
        query = sa.select(table.c.id).where(sa.or_(sa.false(), *old), ~read).order_by(table.c.created_at).limit(limit)
        return list(self._database.do(lambda c: c.scalars(query).all()))

    def fetch(self, stored: StoredFile, spare: Path) -> Path:
        """A file on this disk with its bytes: the kept one, or a copy at `spare`, which is the caller's to remove.

        Raises:
            UnknownNameError: it was deleted meanwhile.
            UnavailableError: it cannot be had.
        """
        with self._reading(stored):
            return self._storage.fetch(_name(stored), spare)

    def open(self, stored: StoredFile) -> IO[bytes]:
        """Its bytes, from any place of it, without a copy on this disk. The caller closes it. Raises as `fetch`."""
        with self._reading(stored):
            return self._storage.open(_name(stored))

    @contextlib.contextmanager
    def _reading(self, stored: StoredFile) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.get(stored.id)
            raise _storage_failure(error) from error

    def spare(self, stored: StoredFile) -> Path:
        """A name that nobody else uses, for `fetch`."""
        return self._incoming / f"{secrets.token_hex(12)}.{stored.format}"

    def delete(self, file_id: str) -> None:
        """Remove a file.

        Raises:
            UnknownNameError: there is none.
            ConflictError: a job that is not finished reads it.
            UnavailableError: it cannot be removed now, and is still known.
        """
        stored = self.get(file_id)
        used = sa.select(jobs.c.id).where(jobs.c.input_file == file_id, jobs.c.status.in_(ACTIVE)).limit(1)

        def remove(connection: sa.Connection) -> None:
            removed = connection.execute(
                sa.delete(table).where(table.c.id == file_id)
            )  # first, for SQLite's write lock
            if not removed.rowcount:
                raise _unknown(file_id)
            if (job := connection.scalar(used)) is not None:
                raise ConflictError(f"{file_id} is read by {job}: wait for it or cancel it", code="file_in_use")
            try:
                self._storage.delete(_name(stored))  # before the commit: what is still known can be deleted again
            except OSError as error:
                raise _storage_failure(error) from error

        self._database.do(remove)

    def _keep(self, path: Path, stored: StoredFile) -> None:
        def describe(connection: sa.Connection) -> None:
            connection.execute(sa.delete(table).where(table.c.id == stored.id))  # of other content
            connection.execute(sa.insert(table).values(**asdict(stored)))

        self._storage.put(path, _name(stored))
        try:
            self._database.do(describe)
        except UnavailableError:
            with contextlib.suppress(UnavailableError, OSError):
                try:
                    self.get(stored.id)  # a database that is gone may have written it down all the same
                except UnknownNameError:
                    self._storage.delete(_name(stored))
            raise


def _name(stored: StoredFile) -> str:
    return f"{stored.id}.{stored.format}"


def job_file_id(job_id: str, what: str) -> str:
    """The id of what a job made: the same every time, so that a step that is run twice makes one file."""
    return f"file_{hashlib.sha256(f'{job_id}/{what}'.encode()).hexdigest()[:24]}"


def safe_name(name: str) -> str:
    """A label for a file from what a client calls it: the last part of a path, printable, of bounded length."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable())[-_NAME_LENGTH:] or "upload"


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces worth a thread's while."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= _CHUNK:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def _describe(file_id: str, purpose: Purpose, filename: str, finding: Finding, size: int, sha256: str) -> StoredFile:
    return StoredFile(
        id=file_id,
        purpose=purpose,
        filename=filename,
        format=finding.format,
        bytes=size,
        sha256=sha256,
        rows=finding.rows,
        unreadable_rows=finding.unreadable,
        problems=finding.problems,
        created_at=int(time.time()),
    )


def _unknown(file_id: str) -> UnknownNameError:
    return UnknownNameError(f"there is no file {file_id[:64]!r}", code="unknown_file", param="file_id")


def _storage_failure(error: OSError) -> UnavailableError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    message = (
        "the service's disk is full: delete files that are not needed any more, or have room made, and try again"
        if full
        else "the service cannot use its disk, or the store of its files"
    )
    return UnavailableError(message, code="storage_unavailable", retry_after_s=60)
