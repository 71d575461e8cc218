"""What is known of jobs: their state, their counts and their events, kept in the service's database.

Every change is one transaction, and made twice it is made once: the work that calls this is done at least once.
Not here: doing the work (`server.jobs_workflow`, `server.jobs_cluster`).
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

from server.exceptions import ConflictError, InvalidFieldError, QueueFullError, UnknownNameError
from server.files import ACTIVE
from server.keys import ENVIRONMENT
from server.schemas import PinnedOptions, RewriteOptions
from server.settings import DAY_S, RetentionSettings, expiry
from server.state import Database, events, files, runs, shards
from server.state import jobs as table
from server.work_schemas import JobRequest

JOB_ID = re.compile(r"job_[0-9a-f]{24}", re.ASCII)
TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Times in seconds since 1970.

    Attributes:
        input_file: None for a job without one.
        owner: id of the key that made it.
        adapter: `name@version` that it is about, or that it made.
        model: the same of a fine-tuned model.
        pinned: whether `adapter` was decided when it was made; not so for jobs of earlier releases.
    """

    id: str
    kind: str
    status: str
    input_file: str | None
    params: dict[str, Any]
    owner: str
    adapter: str | None
    model: str | None
    pinned: bool
    total: int
    completed: int
    failed: int
    output_file: str | None
    error_file: str | None
    samples_file: str | None
    error: str | None
    created_at: int
    finished_at: int | None

    @property
    def options(self) -> RewriteOptions:
        """Of a `rewrite` job: every shard is rewritten by the same adapter, whatever becomes active meanwhile."""
        if self.pinned:
            return PinnedOptions.model_validate(self.params | {"adapter": self.adapter})
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
            "adapter": self.adapter,
            "fine_tuned_model": self.model,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "output_file": self.output_file,
            "error_file": self.error_file,
            "samples_file": self.samples_file,
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

    def made_before(self, request: JobRequest, owner: str, idempotency_key: str) -> Job | None:
        """The job that this request made already, with its key; whatever has become of what it asks for.

        Raises:
            ConflictError: the key came with another request before.
        """
        found = self._database.do(lambda c: c.execute(_by_key(owner, idempotency_key)).first())
        return None if found is None else _same(found, _payload_hash(request))

    def create(
        self,
        request: JobRequest,
        owner: str,
        idempotency_key: str | None,
        *,
        adapter: str | None = None,
        model: str | None = None,
    ) -> Job:
        """A new job, or the one that was made before with the same idempotency key.

        Args:
            request: what is asked.
            owner: id of the key.
            idempotency_key: None for none.
            adapter: `name@version` that the job is about, None for none.
            model: the same of a fine-tuned model.

        Raises:
            UnknownNameError: there is no such input file.
            InvalidFieldError: it has no rows.
            ConflictError: the key came with another request before.
            QueueFullError: too many jobs are not finished.
        """
        row = {
            "id": f"job_{secrets.token_hex(12)}",
            "kind": request.kind,
            "status": "validating",
            "input_file": request.input_file or "",  # the column of earlier releases takes no null
            "params": _params(request),
            "owner": owner,
            "idempotency_key": idempotency_key,
            "payload_hash": _payload_hash(request),
            "created_at": int(time.time()),
        }

        def insert(connection: sa.Connection) -> sa.Row[Any]:
            connection.execute(sa.insert(table).values(total=0, **row))  # first, for SQLite's write lock
            connection.execute(sa.insert(runs).values(job=row["id"], adapter=adapter, model=model))
            rows = _input_rows(connection, request.input_file) if request.input_file else 0
            if request.kind == "rewrite":
                connection.execute(sa.update(table).where(table.c.id == row["id"]).values(total=rows))
            unfinished = sa.select(sa.func.count()).where(table.c.status.in_(ACTIVE))
            if (connection.scalar(unfinished) or 0) > self._waiting:
                raise QueueFullError(
                    f"{self._waiting} jobs are not finished: try again later",
                    code="too_many_jobs",
                    retry_after_s=self._retry_after_s,
                )
            add_event(connection, str(row["id"]), "status", {"status": "validating"})
            return connection.execute(_select().where(table.c.id == row["id"])).one()

        known = None if idempotency_key is None else self.made_before(request, owner, idempotency_key)
        if known is not None:
            return known
        try:
            return _job(self._database.do(insert))
        except sa.exc.IntegrityError:  # the same key, at the same time
            same = None if idempotency_key is None else self.made_before(request, owner, idempotency_key)
            if same is None:
                raise
            return same

    def get(self, job_id: str) -> Job:
        """The job of that id. Raises UnknownNameError."""
        query = _select().where(table.c.id == job_id)
        row = self._database.do(lambda c: c.execute(query).one_or_none()) if JOB_ID.fullmatch(job_id) else None
        if row is None:
            raise UnknownNameError(f"there is no job {job_id[:64]!r}", code="unknown_job", param="job_id")
        return _job(row)

    def page(self, limit: int, after: str | None) -> tuple[list[Job], bool]:
        """Jobs, newest first, those after job `after`; and whether there are more. Raises UnknownNameError."""
        query = _select().order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
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

    def unfinished(self) -> list[tuple[str, str]]:
        """Ids and kinds of the jobs that are not finished, oldest first."""
        query = sa.select(table.c.id, table.c.kind).where(table.c.status.in_(ACTIVE))
        query = query.order_by(table.c.created_at, table.c.id)
        return [(row.id, row.kind) for row in self._database.do(lambda c: c.execute(query).all())]

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
            for part in (events, shards, runs):
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
            add_event(connection, job_id, "progress", data)

        with contextlib.suppress(sa.exc.IntegrityError):  # counted before
            self._database.do(add)

    def finalize(self, job_id: str) -> None:
        """All rows are done and the results are being put together; a job that is being cancelled stays so."""
        self._move(job_id, ("in_progress",), "finalizing")

    def finish(
        self,
        job_id: str,
        *,
        cancelled: bool,
        output_file: str | None = None,
        error_file: str | None = None,
        error: str | None = None,
    ) -> None:
        """The results are there; `error` says what is not in them."""
        changes = {"output_file": output_file, "error_file": error_file, "finished_at": int(time.time())}
        changes |= {"error": error} if error is not None else {}
        self._move(job_id, ACTIVE, "cancelled" if cancelled else "completed", **changes)

    def fail(self, job_id: str, message: str, *, output_file: str | None = None, error_file: str | None = None) -> None:
        """The job as a whole cannot be done; the files have what was finished before."""
        changes = {"output_file": output_file, "error_file": error_file, "finished_at": int(time.time())}
        self._move(job_id, ACTIVE, "failed", error=message, **changes)

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
                add_event(connection, job_id, "status", shown)

        self._database.do(move)


def add_event(connection: sa.Connection, job_id: str, kind: str, data: dict[str, Any]) -> None:
    """Tell the clients of a job, within the transaction of what is told."""
    count = sa.update(table).where(table.c.id == job_id).values(events=table.c.events + 1).returning(table.c.events)
    connection.execute(sa.insert(events).values(job=job_id, number=connection.scalar(count), type=kind, data=data))


def _select() -> sa.Select[Any]:
    """Jobs, with what their runs say; those of earlier releases have none."""
    pinned, samples = runs.c.job.is_not(None).label("pinned"), runs.c.samples.label("samples_file")
    known = (runs.c.adapter, runs.c.model, samples, pinned)
    return sa.select(table, *known).outerjoin(runs, runs.c.job == table.c.id)


def _by_key(owner: str, idempotency_key: str) -> sa.Select[Any]:
    # Earlier releases kept no key of the environment apart.
    owners = (owner, "") if owner.startswith(ENVIRONMENT) else (owner,)
    return _select().where(table.c.owner.in_(owners), table.c.idempotency_key == idempotency_key)


def _params(request: JobRequest) -> dict[str, Any]:
    return request.params.model_dump(exclude_none=True, exclude_defaults=True)


def _payload_hash(request: JobRequest) -> str:
    payload = json.dumps([request.kind, request.input_file, _params(request)], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()


def _input_rows(connection: sa.Connection, file_id: str) -> int:
    """Rows of an input file. Raises UnknownNameError, and InvalidFieldError for a file of something else."""
    query = sa.select(files.c.rows, files.c.format).where(files.c.id == file_id)
    # Locked until the job is there, so that whoever deletes the file sees the job or deletes it before.
    found = connection.execute(query.with_for_update(read=True)).one_or_none()
    if found is None:
        raise UnknownNameError(f"there is no file {file_id!r}", code="unknown_file", param="input_file")
    if found.format == "json":
        raise InvalidFieldError(f"{file_id} is the report of a job and has no rows", code="no_rows", param="input_file")
    return int(found.rows)


def _same(row: sa.Row[Any], payload_hash: str) -> Job:
    if row.payload_hash != payload_hash:
        raise ConflictError(
            f"this Idempotency-Key made {row.id}, with another request: use a new one", code="idempotency_key_reused"
        )
    return _job(row)


def _job(row: sa.Row[Any]) -> Job:
    fields = dict(row._mapping) | {"input_file": row.input_file or None, "pinned": bool(row.pinned)}
    return Job(**{name: fields[name] for name in Job.__dataclass_fields__})
