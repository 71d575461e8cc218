"""The service's own database and folder: tables of files, jobs and keys, in SQLite or PostgreSQL.

How an older database becomes this one is `server.migrations`. Workflows are kept by DBOS in tables of its own
(`server.jobs_runtime`); what a job is, how far it has come and what its clients are told is here.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from agent.exceptions import SettingsError
from server.exceptions import StartError, UnavailableError
from server.migrations import open_schema, schema_table, upgrade_schema
from server.settings import ServerSettings

T = TypeVar("T")

_BUSY_S = 30  # how long a write waits for another one of SQLite
# Of libpq: seconds to connect and until a silent connection is probed; milliseconds without an answer until it is lost.
_POSTGRES_PATIENCE = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 30_000}

_SERVICE_LOCK = 7_392_846_160  # of nobody else in a PostgreSQL database
# The server finds out within a minute that whoever has the lock was cut off, and not after its system's two hours.
_LET_GO = "SELECT " + ", ".join(
    f"set_config('tcp_keepalives_{name}', '{value}', false)"
    for name, value in (("idle", 30), ("interval", 10), ("count", 3))
)

tables = sa.MetaData()

files = sa.Table(
    "rewright_files",
    tables,
    sa.Column("id", sa.String(29), primary_key=True),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("unreadable_rows", sa.BigInteger, nullable=False),
    sa.Column("problems", sa.JSON, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
)

jobs = sa.Table(
    "rewright_jobs",
    tables,
    sa.Column("id", sa.String(28), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("input_file", sa.String(29), nullable=False, index=True),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("idempotency_key", sa.String(255), nullable=True),
    sa.Column("payload_hash", sa.String(64), nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("completed", sa.BigInteger, nullable=False, default=0),
    sa.Column("failed", sa.BigInteger, nullable=False, default=0),
    sa.Column("events", sa.BigInteger, nullable=False, default=0),
    sa.Column("output_file", sa.String(29), nullable=True),
    sa.Column("error_file", sa.String(29), nullable=True),
    sa.Column("error", sa.Text, nullable=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("finished_at", sa.BigInteger, nullable=True, index=True),
    sa.UniqueConstraint("owner", "idempotency_key"),
)

shards = sa.Table(
    "rewright_shards",
    tables,
    sa.Column("job", sa.ForeignKey("rewright_jobs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
)

# What jobs are about that run on a cluster or by an adapter; jobs of earlier releases have none.
runs = sa.Table(
    "rewright_runs",
    tables,
    sa.Column("job", sa.ForeignKey("rewright_jobs.id"), primary_key=True),
    sa.Column("adapter", sa.String(128), nullable=True),
    sa.Column("model", sa.String(128), nullable=True),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("told", sa.Integer, nullable=False, default=0),
    sa.Column("samples", sa.String(29), nullable=True),
)

events = sa.Table(
    "rewright_events",
    tables,
    sa.Column("job", sa.ForeignKey("rewright_jobs.id"), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)

keys = sa.Table(
    "rewright_keys",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=True),
    sa.Column("revoked_at", sa.BigInteger, nullable=True),
)


class Database:
    """The tables above, made on first use.

    Args:
        settings: its state folder is created, for this user only; its database URL decides the kind.
        older: whether tables of an earlier release will do, until `upgrade`.

    Attributes:
        folder: the state folder.
        workflows_url: where DBOS keeps its tables.

    Raises:
        SettingsError: the URL is none, or the folder cannot be made.
        StartError: the database cannot be reached, or another release has made it.
    """

    def __init__(self, settings: ServerSettings, *, older: bool = False) -> None:
        self.folder = settings.state_folder
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"server.state {self.folder}: cannot be made: {error.strerror}") from error
        if settings.database:
            url = _postgres_url(settings.database.get_secret_value())
            self.workflows_url = url.render_as_string(hide_password=False)
        else:
            url = sa.URL.create("sqlite", database=str(self.folder / "service.sqlite"))
            self.workflows_url = f"sqlite:///{self.folder / 'workflows.sqlite'}"
        patience = _POSTGRES_PATIENCE if settings.database else {}
        self._engine = sa.create_engine(url, pool_pre_ping=True, connect_args=patience)
        if url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
        self._hold: sa.Connection | None = None
        with self._starting(), self._engine.begin() as connection:
            open_schema(connection, tables, older=older)

    def close(self) -> None:
        """Close its connections, and let go of what `hold` has."""
        if self._hold is not None:
            self._hold.close()
        self._engine.dispose()

    def hold(self) -> None:
        """Keep a second service off a database of PostgreSQL until `close`; of SQLite, `StateLock` does.

        The lock lives as long as one connection does. Called again, this takes it again where that was lost.

        Raises:
            StartError: another service has it, or the database cannot be reached.
        """
        if self._engine.dialect.name == "sqlite":
            return
        with self._starting():
            if self._hold is not None:
                try:
                    self._hold.execute(sa.select(1))
                    return
                except DBAPIError:
                    self._hold.close()
                    self._hold = None
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()
            connection.exec_driver_sql(_LET_GO)
            if connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_SERVICE_LOCK))):
                self._hold = connection
                return
            connection.close()
        raise StartError(
            "another service uses this database: stop it, or set another server.database; that of a machine that "
            "was cut off is let go within a minute"
        )

    def upgrade(self) -> None:
        """Bring tables of an earlier release up to date. The caller has `StateLock` and `hold`. Raises StartError."""
        with self._starting(), self._engine.begin() as connection:
            upgrade_schema(connection)

    def check(self) -> None:
        """Read from it now. Raises UnavailableError."""
        self.do(lambda connection: connection.execute(sa.select(schema_table)).all())

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise StartError(f"the service's database cannot be used: {_reason(error)}") from error

    def do(self, work: Callable[[sa.Connection], T]) -> T:
        """The result of `work` in one transaction. Blocks; an exception of `work` undoes it.

        Raises:
            UnavailableError: the database does not answer.
        """
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            # The driver has several names for a connection that is gone, and the pool one for none that is free; all
            # others are defects of ours.
            lost = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError)
            if not (lost or getattr(error, "connection_invalidated", False)):
                raise
            raise UnavailableError(
                f"the service's database does not answer: {_reason(error)}",
                code="database_unavailable",
                retry_after_s=_BUSY_S,
            ) from error


class StateLock:
    """Keeps a second service off the same state folder. Let go by the system when the process dies.

    Raises:
        StartError: another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "lock").open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StartError(f"{folder} is in use by another service: stop it, or set another server.state") from None

    def release(self) -> None:
        self._file.close()


def _postgres_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise SettingsError("server.database is no URL, as postgresql://user:password@host/name is one") from None
    if url.get_backend_name() != "postgresql":
        raise SettingsError(f"server.database names {url.get_backend_name()!r}: only postgresql:// is supported")
    return url.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA busy_timeout={_BUSY_S * 1000}")
    connection.execute("PRAGMA foreign_keys=ON")


def _reason(error: SQLAlchemyError) -> str:
    """The first line of what the driver says; SQLAlchemy's own text has statements and parameters in it."""
    cause = getattr(error, "orig", None) or error
    return next(iter(str(cause).splitlines()), type(cause).__name__)
