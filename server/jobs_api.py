"""Routes of jobs: submit, list, describe, follow, cancel."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Security
from fastapi.responses import StreamingResponse
from starlette import types

from server.auth import require_scope
from server.bodies import WorkRoute, bearer
from server.cluster_jobs import ClusterJobs
from server.errors import error_response
from server.examples import error_responses
from server.exceptions import InvalidFieldError, QueueFullError, UnavailableError, UnknownNameError
from server.jobs import Job, JobStore
from server.jobs_runtime import JobRuntime
from server.keys import Caller, Scope
from server.settings import RetentionSettings
from server.work_schemas import JobBody, JobList, JobRequest, RewriteJob

_SCOPE_OF_KIND: dict[str, Scope] = {"rewrite": "rewrite", "evaluate": "rewrite", "train": "train", "sft": "train"}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
_STREAMS = 256  # at once; each looks into the database whenever a job changes
_LARGEST_EVENT = 2**63 - 1
_EVENT_DIGITS = 19


class _EventStream(StreamingResponse):
    """A stream of events that holds one of the places; 429 where all are taken."""

    def __init__(self, places: asyncio.Semaphore, retry_after_s: int, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._places, self._retry_after_s = places, retry_after_s

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if self._places.locked():
            message = f"{_STREAMS} streams of events are open: try again later, or ask for the job itself"
            error = QueueFullError(message, code="too_many_streams", retry_after_s=self._retry_after_s)
            await error_response(error)(scope, receive, send)
            return
        async with self._places:
            await super().__call__(scope, receive, send)


def jobs_router(store: JobStore, runtime: JobRuntime, commands: ClusterJobs, retention: RetentionSettings) -> APIRouter:
    """The routes over `store`.

    Args:
        store: what is known of the jobs.
        runtime: does the work.
        commands: knows which work there is on a cluster.
        retention: says when a job expires.
    """
    router = APIRouter(
        prefix="/v1/jobs",
        tags=["jobs"],
        route_class=WorkRoute,
        dependencies=[Security(bearer)],
        responses=error_responses(400, 401, 403, 404, 422, 429, 500, 503),
    )

    streams = asyncio.Semaphore(_STREAMS)

    async def start(body: JobRequest, caller: Caller, key: str | None, adapter: str | None, model: str | None) -> Job:
        job = await asyncio.to_thread(store.create, body, caller.id, key, adapter=adapter, model=model)
        await runtime.submit(job)
        return job

    @router.post("", response_model=JobBody, responses=error_responses(408, 409, 413, 415))
    async def create_job(
        request: Request,
        body: Annotated[JobRequest, Body(discriminator="kind")],
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=255,
                pattern=r"^[!-~]+$",
                description="the same key with the same body makes one job, however often it is sent",
            ),
        ] = None,
    ) -> dict[str, Any]:
        """Start a job. It goes on when the connection or the service ends."""
        caller: Caller = request.state.caller
        require_scope(caller, [_SCOPE_OF_KIND[body.kind]])
        adapter = model = None
        known: Job | None = None
        if idempotency_key is not None:  # first: what its job is about may be gone since
            known = await asyncio.to_thread(store.made_before, body, caller.id, idempotency_key)
        if known is None:  # else `start` hands out the same job
            if isinstance(body, RewriteJob):
                adapter = await request.app.state.backend.check_options(body.params)
            else:
                adapter, model = await asyncio.to_thread(commands.accept, body)
        # Cancelled between the two, by a client that goes away, it would leave a job that nothing runs.
        started = asyncio.create_task(start(body, caller, idempotency_key, adapter, model))
        return (await asyncio.shield(started)).as_dict(retention)

    @router.get("", response_model=JobList)
    async def list_jobs(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(description="id of the last job of the page before")] = None,
    ) -> dict[str, Any]:
        """Jobs, newest first."""
        page, more = await asyncio.to_thread(store.page, limit, after)
        return {"object": "list", "data": [job.as_dict(retention) for job in page], "has_more": more}

    @router.get("/{job_id}", response_model=JobBody)
    async def get_job(job_id: str) -> dict[str, Any]:
        """How far a job is."""
        return (await asyncio.to_thread(store.get, job_id)).as_dict(retention)

    @router.get("/{job_id}/events", response_class=StreamingResponse, responses=_STREAM)
    async def stream_events(
        request: Request,
        job_id: str,
        last_event_id: Annotated[str | None, Header(description="go on after this event")] = None,
    ) -> StreamingResponse:
        """What happens to a job, from its beginning until its end, as server-sent events.

        `status` events have the new status, `progress` events the counts; of jobs on a cluster, `attempt` events have
        the number of a start, and `log` events lines of what it prints. Their ids count from 1.
        """
        await asyncio.to_thread(store.get, job_id)
        after = _event_number(last_event_id)
        retry_after_s = request.app.state.limits.retry_after_s
        return _EventStream(streams, retry_after_s, _stream(runtime, job_id, after))

    @router.post("/{job_id}/cancel", response_model=JobBody)
    async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
        """End a job early; the rows that are finished are kept. A job that has ended stays as it is."""
        job = await asyncio.to_thread(store.get, job_id)
        require_scope(request.state.caller, [_SCOPE_OF_KIND[job.kind]])
        return (await runtime.cancel(job_id)).as_dict(retention)

    return router


def _event_number(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= _EVENT_DIGITS) or int(text) > _LARGEST_EVENT:
        raise InvalidFieldError(
            "Last-Event-ID is no number of an event", code="invalid_event_id", param="last-event-id"
        )
    return int(text)


async def _stream(runtime: JobRuntime, job_id: str, after: int) -> AsyncIterator[str]:
    # A database that is away, or a job that is forgotten, ends the stream; clients come back with Last-Event-ID.
    with contextlib.suppress(UnavailableError, UnknownNameError):
        async for event in runtime.events(job_id, after):
            if event is None:
                yield ": still here\n\n"
            else:
                yield f"id: {event.number}\nevent: {event.type}\ndata: {json.dumps(event.data)}\n\n"
