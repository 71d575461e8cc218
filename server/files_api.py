"""Routes of files: upload, list, describe, download, delete."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Annotated, Any, ClassVar

import anyio
from fastapi import APIRouter, Query, Request, Security
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.bodies import WorkRoute, bearer
from server.errors import error_body
from server.examples import error_responses
from server.files import FileStore, StoredFile
from server.settings import ServerSettings
from server.uploads import RAW_TYPES, Upload, UploadPlaces
from server.work_schemas import DeletedFile, FileBody, FileList

MEDIA_TYPES = {
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM_SCHEMA = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}},
    "required": ["file"],
}
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _FORM_SCHEMA}} | dict.fromkeys(RAW_TYPES, _BINARY),
    }
}


class _BadRangeError(Exception):
    """The library begins to answer, as text, that it does not like the header `Range`."""

    def __init__(self, message: Message) -> None:
        said = Headers(raw=message["headers"])
        headers = {name: said[name] for name in ("content-range",) if name in said}
        reason = "the file has no such range" if headers else "Range is none, as bytes=0-99 is one"
        body = error_body(reason, "invalid_request_error", "invalid_range", param="range")
        self.response = JSONResponse(body, message["status"], headers)


class _Content(FileResponse):
    """A file from wherever it is kept, or a range of it; closed when that is sent or the client has gone."""

    def __init__(self, stored: StoredFile, opened: IO[bytes]) -> None:
        known = os.stat_result((0, 0, 0, 0, 0, 0, stored.bytes, 0, stored.created_at, 0))
        name = f"{stored.id}.{stored.format}"
        super().__init__(name, stat_result=known, media_type=MEDIA_TYPES[stored.format], filename=name)
        self._opened = opened

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[anyio.AsyncFile[bytes]]:
        """In place of the library's, which opens a path of this machine."""
        yield anyio.wrap_file(self._opened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_but_errors(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                raise _BadRangeError(message)
            await send(message)

        try:
            await super().__call__(scope, receive, send_but_errors)
        except _BadRangeError as error:
            await error.response(scope, receive, send)
        finally:
            self._opened.close()


class UploadRoute(WorkRoute):
    """A route whose body is read by its own handler, within the bounds of an upload."""

    request_class: ClassVar[type[Request]] = Request


def files_router(store: FileStore, settings: ServerSettings) -> APIRouter:
    """The routes over `store`."""
    router = APIRouter(
        prefix="/v1/files",
        tags=["files"],
        route_class=WorkRoute,
        dependencies=[Security(bearer)],
        responses=error_responses(400, 401, 403, 404, 422, 429, 500, 503),
    )
    upload = APIRouter(
        prefix="/v1/files",
        tags=["files"],
        route_class=UploadRoute,
        dependencies=[Security(bearer)],
        responses=error_responses(400, 401, 403, 408, 411, 413, 415, 422, 429, 500, 503),
    )

    @upload.post("", response_model=FileBody, openapi_extra=_UPLOAD_BODY)
    async def create_file(
        request: Request,
        filename: Annotated[str | None, Query(max_length=1024, description="label of a file sent as the body")] = None,
    ) -> dict[str, Any]:
        """Upload JSON lines or Parquet, as the body itself or as the part `file` of a form.

        A row that cannot be read does not make a bad file: it becomes an error record of a job.
        """
        incoming = Upload(request, filename, settings.limits, settings.files)
        places: UploadPlaces = request.app.state.upload_places
        with places.hold(incoming):
            return (await store.receive(incoming)).as_dict(settings.retention)

    @router.get("", response_model=FileList)
    async def list_files(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(description="id of the last file of the page before")] = None,
    ) -> dict[str, Any]:
        """Files, newest first: uploads and results of jobs."""
        page, more = await asyncio.to_thread(store.page, limit, after)
        return {"object": "list", "data": [stored.as_dict(settings.retention) for stored in page], "has_more": more}

    @router.get("/{file_id}", response_model=FileBody)
    async def get_file(file_id: str) -> dict[str, Any]:
        """What is known of a file."""
        return (await asyncio.to_thread(store.get, file_id)).as_dict(settings.retention)

    @router.get(
        "/{file_id}/content",
        response_class=FileResponse,
        responses={
            200: {"content": {**dict.fromkeys(MEDIA_TYPES.values(), _BINARY), "application/json": {"schema": {}}}},
            **error_responses(416),
        },
    )
    async def get_content(file_id: str) -> FileResponse:
        """The bytes of a file, streamed."""
        stored = await asyncio.to_thread(store.get, file_id)
        return _Content(stored, await asyncio.to_thread(store.open, stored))

    @router.delete("/{file_id}", response_model=DeletedFile, responses=error_responses(409))
    async def delete_file(file_id: str) -> dict[str, Any]:
        """Remove a file that no unfinished job reads."""
        await asyncio.to_thread(store.delete, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    both = APIRouter()
    both.include_router(upload)
    both.include_router(router)
    return both
