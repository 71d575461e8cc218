"""The bytes of an upload from a request: the body itself, or the part `file` of a multipart form, never all at once.

Not here: what the bytes must be (`server.files_check`), and where they go (`server.files`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from server.bodies import declared_bytes
from server.exceptions import (
    BadRequestError,
    BodyTimeoutError,
    LengthRequiredError,
    MediaTypeError,
    QueueFullError,
    TooLargeError,
)
from server.files import safe_name
from server.settings import FileSettings, LimitSettings

RAW_TYPES = (
    "application/x-ndjson",
    "application/jsonl",
    "application/octet-stream",
    "application/vnd.apache.parquet",
    "text/plain",
)
_FORM = "multipart/form-data"
_FORM_OVERHEAD = 1 << 16  # bytes of a form beside its file
_FIELD_NAME = "file"
_OTHER_FIELDS = ("purpose",)  # clients made for OpenAI's files send it
# A place is not held by a trickle: beyond this time of waiting for the client, so much must have come a second of it.
_GRACE_S = 60.0
_LEAST_BYTES_PER_S = 16 * 2**10


class UploadPlaces:
    """Bounds the uploads that are being received.

    Args:
        settings: how many there may be, and the size of the longest.
        limits: what whoever finds no place is told.
        proxied: behind the proxy of Ray Serve. It takes what a client sends as fast as it comes, and whatever the
            disk has not taken yet lies in memory: so all uploads together are no longer than the longest may be.
    """

    def __init__(self, settings: FileSettings, limits: LimitSettings, *, proxied: bool) -> None:
        self._most, self._retry_after_s, self._proxied = settings.uploads, limits.retry_after_s, proxied
        self._places, self._bytes = settings.uploads, settings.upload_bytes + _FORM_OVERHEAD

    @contextmanager
    def hold(self, upload: Upload) -> Iterator[None]:
        """Hold a place for an upload.

        Raises:
            LengthRequiredError: behind the proxy it must say how long it is.
            QueueFullError: there is no place.
        """
        size = 0
        if self._proxied:
            if upload.declared_bytes is None:
                raise LengthRequiredError(
                    "this service takes no upload of unknown length: send its Content-Length", code="length_required"
                )
            size = upload.declared_bytes
        if not self._places:
            raise self._full(f"{self._most} files are being received")
        if size > self._bytes:
            raise self._full(f"so much is being received that there is no room for {size} bytes")
        self._places, self._bytes = self._places - 1, self._bytes - size
        try:
            yield
        finally:
            self._places, self._bytes = self._places + 1, self._bytes + size

    def _full(self, reason: str) -> QueueFullError:
        return QueueFullError(f"{reason}: try again later", code="too_many_uploads", retry_after_s=self._retry_after_s)


class Upload:
    """One upload as it arrives.

    Args:
        request: its Content-Type decides how the body is read.
        filename: label of a raw body.
        limits: `body_timeout_s` is the longest silence of a client.
        settings: size and time of the whole.

    Attributes:
        filename: what the client calls the file; that of a form is known when its first bytes are.
        declared_bytes: length of the whole body as its head says, None where it does not.

    Raises:
        MediaTypeError: the Content-Type is neither of a form nor of a raw body.
        TooLargeError: the declared length is beyond the limit.
    """

    def __init__(self, request: Request, filename: str | None, limits: LimitSettings, settings: FileSettings) -> None:
        media_type, options = parse_options_header(request.headers.get("content-type"))
        self._boundary = options.get(b"boundary", b"") if media_type == _FORM.encode() else None
        if self._boundary is None and media_type.decode("latin-1") not in RAW_TYPES:
            raise MediaTypeError(
                f"declare the body as {_FORM} with a part {_FIELD_NAME!r}, or as one of {', '.join(RAW_TYPES)}",
                code="unsupported_media_type",
            )
        self._request, self._limits, self._settings = request, limits, settings
        self.filename = safe_name(filename or "")
        self._longest = settings.upload_bytes + _FORM_OVERHEAD
        self._too_large = TooLargeError(
            f"the body is longer than {settings.upload_bytes} bytes: send the file in parts",
            code="file_too_large",
            param="file",
        )
        self.declared_bytes = declared_bytes(request)
        if self.declared_bytes is not None and self.declared_bytes > self._longest:
            raise self._too_large

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the file.

        Raises:
            ApiError: the body is too slow, ends early, or is no form.
        """
        return self._body() if self._boundary is None else self._form_file(self._boundary)

    async def _body(self) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        stream = self._request.stream().__aiter__()
        end = clock() + self._settings.upload_timeout_s
        received, waited = 0, 0.0
        while True:
            since = clock()
            try:
                async with asyncio.timeout(min(end - since, self._limits.body_timeout_s)):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise BodyTimeoutError(
                    f"nothing came for {self._limits.body_timeout_s:g} seconds, or the whole took longer than "
                    f"{self._settings.upload_timeout_s:g}",
                    code="body_timeout",
                ) from None
            except ClientDisconnect:
                raise BadRequestError("the body ended before its time", code="incomplete_body") from None
            received, waited = received + len(chunk), waited + clock() - since
            if received < (waited - _GRACE_S) * _LEAST_BYTES_PER_S:
                raise BodyTimeoutError(
                    f"the body came at less than {_LEAST_BYTES_PER_S // 2**10} KiB a second", code="body_timeout"
                )
            if received > self._longest:  # of a form, what follows its end is nobody's part
                raise self._too_large
            yield chunk

    async def _form_file(self, boundary: bytes) -> AsyncIterator[bytes]:
        form = _Form()
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": form.begin,
                    "on_header_field": form.header_name,
                    "on_header_value": form.header_value,
                    "on_header_end": form.header_end,
                    "on_headers_finished": form.headers_end,
                    "on_part_data": form.data,
                    "on_end": form.finish,
                },
            )
            async for chunk in self._body():
                parser.write(chunk)
                if form.filename is not None:
                    self.filename = safe_name(form.filename)
                if form.overhead > _FORM_OVERHEAD:
                    raise BadRequestError("the form has more than a file", code="invalid_form")
                if data := form.take():
                    yield data
        except FormParserError as error:
            raise BadRequestError(f"the form cannot be read: {error}", code="invalid_form") from None
        if not form.finished:
            raise BadRequestError("the form ended before its time", code="incomplete_body")
        if not form.found:
            raise BadRequestError(f"the form has no part {_FIELD_NAME!r}", code="invalid_form", param=_FIELD_NAME)


class _Form:
    """What a parser of forms tells: keeps the file's bytes until they are taken, and forgets the other parts."""

    def __init__(self) -> None:
        self.filename: str | None = None
        self.found = self.finished = False
        self.overhead = 0
        self._inside = False
        self._name, self._value = b"", b""
        self._disposition = b""
        self._data = bytearray()

    def begin(self) -> None:
        self._disposition = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self.overhead += len(self._name) + len(self._value)
        self._name, self._value = b"", b""

    def headers_end(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode(errors="replace")
        if name != _FIELD_NAME and name not in _OTHER_FIELDS:
            raise BadRequestError(
                f"the form has a part {name[:40]!r}, which means nothing here: send {_FIELD_NAME!r} alone",
                code="invalid_form",
            )
        self._inside = name == _FIELD_NAME
        if self._inside:
            if self.found:
                raise BadRequestError(
                    f"the form has several parts {_FIELD_NAME!r}: send one at a time", code="invalid_form"
                )
            self.found = True
            self.filename = options.get(b"filename", b"").decode(errors="replace")

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._data += data[start:end]
        else:
            self.overhead += end - start

    def finish(self) -> None:
        self.finished = True

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
