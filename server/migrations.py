"""How a database of an earlier release becomes one of this release: numbered steps, all in one transaction.

A step is never changed once it was released. A new one is added at the end, together with the same change of the
tables in `server.state`, from which an empty database is made.
"""

from __future__ import annotations

import sqlalchemy as sa

from server.exceptions import StartError

# What leads from schema N to N + 1, in SQL that SQLite and PostgreSQL both understand.
STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE INDEX ix_rewright_files_created_at ON rewright_files (created_at)",
        "CREATE INDEX ix_rewright_jobs_finished_at ON rewright_jobs (finished_at)",
        "CREATE TABLE rewright_runs (job VARCHAR(28) NOT NULL PRIMARY KEY REFERENCES rewright_jobs (id), "
        "adapter VARCHAR(128), model VARCHAR(128), attempt INTEGER NOT NULL, told INTEGER NOT NULL)",
    ),
    2: ("ALTER TABLE rewright_runs ADD COLUMN samples VARCHAR(29)",),
}
SCHEMA_VERSION = max(STEPS) + 1
_LOCK = 7_392_846_159  # of nobody else in a PostgreSQL database

schema_table = sa.Table("rewright_schema", sa.MetaData(), sa.Column("version", sa.Integer, primary_key=True))


def open_schema(connection: sa.Connection, tables: sa.MetaData, *, older: bool) -> None:
    """Make the tables where there are none; those that are there stay as they are.

    Args:
        connection: in a transaction that the caller ends; in SQLite it has the write lock afterwards.
        tables: as they are at `SCHEMA_VERSION`.
        older: whether those of an earlier release will do.

    Raises:
        StartError: a newer release has made them, or an earlier one that will not do.
    """
    _keep_others_out(connection)
    schema_table.create(connection, checkfirst=True)
    found = connection.scalar(sa.select(sa.func.max(schema_table.c.version)))
    if found is None:
        tables.create_all(connection)
        connection.execute(sa.insert(schema_table).values(version=SCHEMA_VERSION))
    elif found > SCHEMA_VERSION:
        raise StartError(
            f"the service's database has schema {found}, and this release knows {SCHEMA_VERSION}: "
            "use the release that made it, or another server.state"
        )
    elif found < SCHEMA_VERSION and not older:
        raise StartError(
            f"the service's database has schema {found}, and this release needs {SCHEMA_VERSION}: use the release "
            "that made it, or start the service of this one once, which brings the database forward"
        )


def upgrade_schema(connection: sa.Connection) -> None:
    """Bring the tables of an earlier release to `SCHEMA_VERSION`; the caller keeps services off the database.

    Args:
        connection: as for `open_schema`, which has opened it.
    """
    _keep_others_out(connection)
    found = connection.scalar(sa.select(sa.func.max(schema_table.c.version)))
    for version in range(found or SCHEMA_VERSION, SCHEMA_VERSION):
        for statement in STEPS[version]:
            connection.exec_driver_sql(statement)
    connection.execute(sa.update(schema_table).values(version=SCHEMA_VERSION))


def _keep_others_out(connection: sa.Connection) -> None:
    """Two processes may open the same database at the same time."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins none for changes of the schema
    else:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
