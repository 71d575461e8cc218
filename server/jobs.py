"""What is known of jobs: their state, their counts and their events, kept in the service's database.

Every change is one transaction, and made twice it is made once: the work that calls this is done at least once.
Not here: doing the work (`server.jobs_workflow`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from server.exceptions import ConflictError, QueueFullError, UnknownNameError
from server.files import ACTIVE
from server.schemas import RewriteOptions
from server.settings import DAY_S, RetentionSettings, expiry
from server.state import Database, events, files, shards
from server.state import jobs as table
from server.work_schemas import JobRequest

JOB_ID = re.compile(r"job_[0-9a-f]{24}", re.ASCII)
TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """One job; `owner` is the id of the key that made it. Times in seconds since 1970."""

    id: str
    kind: str
    status: str
    input_file: str
    params: dict[str, Any]
    owner: str
    total: int
    completed: int
    failed: int
    output_file: str | None
    error_file: str | None
    error: str | None
    created_at: int
    finished_at: int | None

    @property
    def options(self) -> RewriteOptions:
        return RewriteOptions.model_validate(self.params)

    def as_dict(self, retention: RetentionSettings) -> dict[str, Any]:
        """The job as clients see it."""
        return {
            "id": self.id,
            "object": "job",
            "kind": self.kind,
            "status": self.status,
            "input_file": self.input_file,
            "params": self.params,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "output_file": self.output_file,
            "error_file": self.error_file,
            "error": self.error,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "expires_at": expiry(self.finished_at, retention.jobs_days),
        }


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job; `number` counts from 1."""

    number: int
    type: str
    data: dict[str, Any]


class JobStore:
    """The jobs in a database. Methods block.

    Args:
        database: holds them.
        waiting: jobs that are not finished, at most.
        retry_after_s: told to whoever is turned away, seconds.
        retention: how long an ended job is known.
    """

    def __init__(self, database: Database, waiting: int, retry_after_s: int, retention: RetentionSettings) -> None:
        self._database, self._waiting, self._retry_after_s = database, waiting, retry_after_s
        self._retention = retention

    def create(self, request: JobRequest, owner: str, idempotency_key: str | None) -> Job:
        """A new job, or the one that was made before with the same idempotency key.

        Raises:
            UnknownNameError: there is no such input file.
            ConflictError: the key came with another request before.
            QueueFullError: too many jobs are not finished.
        """
        params = request.params.model_dump(exclude_none=True, exclude_defaults=True)
        payload = json.dumps([request.kind, request.input_file, params], sort_keys=True)
        row = {
            "id": f"job_{secrets.token_hex(12)}",
            "kind": request.kind,
            "status": "validating",
            "input_file": request.input_file,
            "params": params,
            "owner": owner,
            "idempotency_key": idempotency_key,
            "payload_hash": hashlib.sha256(payload.encode()).hexdigest(),
            "created_at": int(time.time()),
        }
        same_key = sa.select(table).where(table.c.owner == owner, table.c.idempotency_key == idempotency_key)

        def insert(connection: sa.Connection) -> sa.Row[Any]:
            connection.execute(sa.insert(table).values(total=0, **row))  # first, for SQLite's write lock
            # Locked until the job is there, so that whoever deletes the file sees the job or deletes it before.
            source = sa.select(files.c.rows).where(files.c.id == request.input_file).with_for_update(read=True)
            total = connection.scalar(source)
            if total is None:
                raise UnknownNameError(
                    f"there is no file {request.input_file!r}", code="unknown_file", param="input_file"
                )
            connection.execute(sa.update(table).where(table.c.id == row["id"]).values(total=total))
            unfinished = sa.select(sa.func.count()).where(table.c.status.in_(ACTIVE))
            if (connection.scalar(unfinished) or 0) > self._waiting:
                raise QueueFullError(
                    f"{self._waiting} jobs are not finished: try again later",
                    code="too_many_jobs",
                    retry_after_s=self._retry_after_s,
                )
            _add_event(connection, str(row["id"]), "status", {"status": "validating"})
            return connection.execute(sa.select(table).where(table.c.id == row["id"])).one()

        if idempotency_key is not None:
            found = self._database.do(lambda c: c.execute(same_key).one_or_none())
            if found is not None:
                return _same(found, str(row["payload_hash"]))
        try:
            return _job(self._database.do(insert))
        except sa.exc.IntegrityError:  # the same key, at the same time
            return _same(self._database.do(lambda c: c.execute(same_key).one()), str(row["payload_hash"]))

    def get(self, job_id: str) -> Job:
        """The job of that id. Raises UnknownNameError."""
        query = sa.select(table).where(table.c.id == job_id)
        row = self._database.do(lambda c: c.execute(query).one_or_none()) if JOB_ID.fullmatch(job_id) else None
        if row is None:
            raise UnknownNameError(f"there is no job {job_id[:64]!r}", code="unknown_job", param="job_id")
        return _job(row)

    def page(self, limit: int, after: str | None) -> tuple[list[Job], bool]:
        """Jobs, newest first, those after job `after`; and whether there are more. Raises UnknownNameError."""
        query = sa.select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
        if after is not None:
            last = self.get(after)
            query = query.where(
                sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(sa.literal(last.created_at), sa.literal(last.id))
            )
        rows = self._database.do(lambda c: c.execute(query).all())
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state, those that no job is in too."""
        query = sa.select(table.c.status, sa.func.count()).group_by(table.c.status)
        found = {row[0]: row[1] for row in self._database.do(lambda c: c.execute(query).all())}
        return {status: found.get(status, 0) for status in (*ACTIVE, *TERMINAL)}

    def unfinished(self) -> list[str]:
        """Ids of the jobs that are not finished, oldest first."""
        query = sa.select(table.c.id).where(table.c.status.in_(ACTIVE)).order_by(table.c.created_at, table.c.id)
        return list(self._database.do(lambda c: c.scalars(query).all()))

    def expired(self, now: float, limit: int) -> list[str]:
        """Ids of ended jobs that have expired at `now`, oldest first."""
        if (days := self._retention.jobs_days) is None:
            return []
        old = sa.and_(table.c.status.in_(TERMINAL), table.c.finished_at <= now - days * DAY_S)
        query = sa.select(table.c.id).where(old).order_by(table.c.finished_at).limit(limit)
        return list(self._database.do(lambda c: c.scalars(query).all()))

    def delete(self, job_id: str) -> None:
        """Forget an ended job and its events; one that has not ended, or is gone, stays as it is."""

        def remove(connection: sa.Connection) -> None:
            ended = sa.select(table.c.id).where(table.c.id == job_id, table.c.status.in_(TERMINAL))
            if connection.scalar(ended) is None:
                return
            for part in (events, shards):
                connection.execute(sa.delete(part).where(part.c.job == job_id))
            connection.execute(sa.delete(table).where(table.c.id == job_id))

        self._database.do(remove)

    def begin(self, job_id: str) -> None:
        """The work has started, unless it was cancelled before."""
        self._move(job_id, ("validating",), "in_progress")

    def cancel(self, job_id: str) -> Job:
        """Ask that the job ends early; what is finished stays so. Raises UnknownNameError."""
        self.get(job_id)
        self._move(job_id, ("validating",), "cancelled", finished_at=int(time.time()))
        self._move(job_id, ("in_progress",), "cancelling")
        return self.get(job_id)

    def add_shard(self, job_id: str, shard: int, completed: int, failed: int) -> None:
        """Rows are done; counted once for each shard."""

        def add(connection: sa.Connection) -> None:
            change = (
                sa.update(table)
                .where(table.c.id == job_id)
                .values(completed=table.c.completed + completed, failed=table.c.failed + failed)
                .returning(table.c.total, table.c.completed, table.c.failed)
            )
            counts = connection.execute(change).one()
            connection.execute(sa.insert(shards).values(job=job_id, number=shard))
            data = {"total": counts.total, "completed": counts.completed, "failed": counts.failed}
            _add_event(connection, job_id, "progress", data)

        with contextlib.suppress(sa.exc.IntegrityError):  # counted before
            self._database.do(add)

    def finalize(self, job_id: str) -> None:
        """All rows are done and the results are being put together; a job that is being cancelled stays so."""
        self._move(job_id, ("in_progress",), "finalizing")

    def finish(self, job_id: str, *, cancelled: bool, output_file: str, error_file: str | None) -> None:
        """The results are there."""
        changes = {"output_file": output_file, "error_file": error_file, "finished_at": int(time.time())}
        self._move(job_id, ACTIVE, "cancelled" if cancelled else "completed", **changes)

    def fail(self, job_id: str, message: str) -> None:
        """The job as a whole cannot be done."""
        self._move(job_id, ACTIVE, "failed", error=message, finished_at=int(time.time()))

    def events(self, job_id: str, after: int, limit: int) -> list[Event]:
        """Events after number `after`, in their order."""
        query = (
            sa.select(events)
            .where(events.c.job == job_id, events.c.number > after)
            .order_by(events.c.number)
            .limit(limit)
        )
        return [Event(row.number, row.type, row.data) for row in self._database.do(lambda c: c.execute(query).all())]

    def _move(self, job_id: str, before: tuple[str, ...], status: str, **changes: Any) -> None:
        """Change the status where it is one of `before`, and tell of it."""

        def move(connection: sa.Connection) -> None:
            change = sa.update(table).where(table.c.id == job_id, table.c.status.in_(before))
            if connection.execute(change.values(status=status, **changes)).rowcount:
                told = ("output_file", "error_file", "error")
                shown = {"status": status} | {name: changes[name] for name in told if name in changes}
                _add_event(connection, job_id, "status", shown)

        self._database.do(move)


def _add_event(connection: sa.Connection, job_id: str, kind: str, data: dict[str, Any]) -> None:
    count = sa.update(table).where(table.c.id == job_id).values(events=table.c.events + 1).returning(table.c.events)
    connection.execute(sa.insert(events).values(job=job_id, number=connection.scalar(count), type=kind, data=data))


def _same(row: sa.Row[Any], payload_hash: str) -> Job:
    if row.payload_hash != payload_hash:
        raise ConflictError(
            f"this Idempotency-Key made {row.id}, with another request: use a new one", code="idempotency_key_reused"
        )
    return _job(row)


def _job(row: sa.Row[Any]) -> Job:
    fields = row._mapping
    return Job(**{name: fields[name] for name in Job.__dataclass_fields__})
