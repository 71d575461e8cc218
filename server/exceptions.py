"""Errors of the service: each knows its HTTP status and the fields of its OpenAI-shaped body.

How they become responses is `server.errors`.
"""

from __future__ import annotations

from typing import ClassVar

from agent.exceptions import RewrightError


class ApiError(RewrightError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status code.
        type: family of the error, as OpenAI names them.
        code: short name of this very error, for programs.
        param: the request field at fault, None when it is not about a field.
        line: 1-based line of the request body, or number of the demonstration.
        retry_after_s: seconds after which trying again makes sense, None when it does not.
    """

    status: ClassVar[int]
    type: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        line: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.line = line
        self.retry_after_s = retry_after_s


class BadRequestError(ApiError, ValueError):
    """The request cannot be understood."""

    status = 400


class AuthenticationError(ApiError, PermissionError):
    """The bearer key is missing or unknown."""

    status = 401
    type = "authentication_error"


class ForbiddenError(ApiError, PermissionError):
    """The bearer key is known, and not allowed to do this."""

    status = 403
    type = "permission_error"


class UnknownNameError(ApiError, LookupError):
    """The request names something that does not exist here: an adapter, a strategy, a file, a job, a path."""

    status = 404


class BodyTimeoutError(ApiError, TimeoutError):
    """The client took too long to send its body."""

    status = 408


class ConflictError(ApiError, ValueError):
    """The request contradicts what is there: a key used before, a file in use, an adapter that cannot be used."""

    status = 409


class LengthRequiredError(ApiError, ValueError):
    """The request must say how long its body is."""

    status = 411


class TooLargeError(ApiError, ValueError):
    """The request is beyond a limit that trying again will not change."""

    status = 413


class MediaTypeError(ApiError, ValueError):
    """The body is not declared as what the route takes."""

    status = 415


class InvalidFieldError(ApiError, ValueError):
    """A field of the request has a value that makes no sense."""

    status = 422


class QueueFullError(ApiError, RuntimeError):
    """The house is full; the same request may succeed later."""

    status = 429
    type = "rate_limit_error"


class RateLimitError(ApiError, RuntimeError):
    """The key has asked for more than it may in a minute."""

    status = 429
    type = "rate_limit_error"


class UnavailableError(ApiError, RuntimeError):
    """The engine is starting, being replaced or shutting down."""

    status = 503
    type = "server_error"


class WorkTimeoutError(ApiError, TimeoutError):
    """The work took longer than a request may."""

    status = 504
    type = "server_error"


class FileFormatError(BadRequestError):
    """An uploaded file is neither JSON lines nor Parquet."""


class StartError(RewrightError, RuntimeError):
    """The service could not be started."""

    may_pass = True
