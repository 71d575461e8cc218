"""How far jobs on a cluster have come: their attempts, and what of the log was told as events.

Every change is one transaction, and made twice it is made once. Not here: what all jobs have (`server.jobs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from server.jobs import add_event
from server.state import Database, runs


@dataclass(frozen=True, slots=True)
class Run:
    """`attempt` was the last to be started, 0 for none; `told` lines of its log are events."""

    attempt: int
    told: int


class RunStore:
    """The runs in a database. Methods block."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, job_id: str) -> Run:
        """That of a job on a cluster."""
        return self._database.do(lambda c: _get(c, job_id))

    def started(self, job_id: str, attempt: int) -> Run:
        """An attempt was started, and its log begins anew; returns as `get`."""

        def start(connection: sa.Connection) -> Run:
            change = sa.update(runs).where(runs.c.job == job_id, runs.c.attempt < attempt)
            if connection.execute(change.values(attempt=attempt, told=0)).rowcount:
                add_event(connection, job_id, "attempt", {"attempt": attempt})
            return _get(connection, job_id)

        return self._database.do(start)

    def tell(self, job_id: str, run: Run, lines: Sequence[str]) -> None:
        """Lines of the log that follow those that `run` has told."""

        def tell(connection: sa.Connection) -> None:
            same = (runs.c.job == job_id, runs.c.attempt == run.attempt, runs.c.told == run.told)
            if connection.execute(sa.update(runs).where(*same).values(told=run.told + len(lines))).rowcount:
                add_event(connection, job_id, "log", {"attempt": run.attempt, "lines": list(lines)})

        self._database.do(tell)

    def made(self, job_id: str, *, adapter: str | None, model: str | None, samples: str | None) -> None:
        """What a job has published, and the file of its samples; None leaves what is known."""
        made = (("adapter", adapter), ("model", model), ("samples", samples))
        known = {name: value for name, value in made if value is not None}
        if known:
            self._database.do(lambda c: c.execute(sa.update(runs).where(runs.c.job == job_id).values(known)))


def _get(connection: sa.Connection, job_id: str) -> Run:
    row = connection.execute(sa.select(runs).where(runs.c.job == job_id)).one()
    return Run(row.attempt, row.told)
