"""Room in the house: requests and rows of jobs beside each other."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from server.admission import Admission
from server.exceptions import QueueFullError
from server.jobs_shard import Lane

CAPACITY, SHARE = 16, 2


async def _turns() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Rows:
    """Rows of a job that stay in the house until they are told to leave."""

    def __init__(self, lane: Lane, count: int) -> None:
        self.inside = 0
        self._leave = [asyncio.Event() for _ in range(count)]
        self.tasks = [asyncio.create_task(self._row(lane, leave)) for leave in self._leave]

    async def _row(self, lane: Lane, leave: asyncio.Event) -> None:
        async with lane.row():
            self.inside += 1
            await leave.wait()
            self.inside -= 1

    async def leave(self, number: int) -> None:
        self._leave[number].set()
        await _turns()


async def test_a_job_gets_its_share_of_a_house_that_is_always_full() -> None:
    admission = Admission(CAPACITY, 1)
    requests = [ExitStack() for _ in range(CAPACITY)]
    for request in requests:
        request.enter_context(admission.admit(1))
    job = Rows(Lane(CAPACITY, admission), 10)
    await _turns()
    assert job.inside == 0
    refused = 0
    for _ in range(3):
        for request in requests:  # each that has its answer is followed by the next at once
            request.close()
            try:
                request.enter_context(admission.admit(1))
            except QueueFullError:
                refused += 1
            await _turns()
    assert (job.inside, refused) == (SHARE, 3 * SHARE)
    assert admission.rows == CAPACITY
    for number in range(8):  # one row after the other, with no request let in between
        await job.leave(number)
        assert job.inside == SHARE
        with pytest.raises(QueueFullError), admission.admit(1):
            pass


async def test_jobs_never_take_the_last_places_for_requests() -> None:
    admission = Admission(CAPACITY, 1)
    job = Rows(Lane(CAPACITY, admission), CAPACITY)
    await _turns()
    assert job.inside == CAPACITY - SHARE
    with admission.admit(SHARE):
        await job.leave(0)
        assert job.inside == CAPACITY - SHARE - 1
    await _turns()
    assert job.inside == CAPACITY - SHARE


@pytest.mark.parametrize("late", [False, True])
async def test_a_row_that_is_cancelled_while_it_waits_holds_no_room(late: bool) -> None:
    admission = Admission(1, 1)
    with admission.admit(1):
        job = Rows(Lane(2, admission), 2)
        await _turns()
        if not late:
            job.tasks[0].cancel()
            await _turns()
    job.tasks[0].cancel()  # where it is late, its place was given to it just now
    await _turns()
    assert (job.inside, admission.rows) == (1, 1)
    await job.leave(1)
    await admission.drained()
    assert admission.rows == 0
