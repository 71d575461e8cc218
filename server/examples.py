"""Examples of the OpenAPI description: request bodies, their answers, and every error."""

from __future__ import annotations

from typing import Any

from server.errors import error_body
from server.schemas import ErrorResponse

_APPLES: dict[str, Any] = {
    "id": "apples",
    "question": "Mira has 3 boxes with 4 apples each and eats 2 apples. How many are left?",
    "answer": "3*4=<<3*4=12>>12, 12-2=<<12-2=10>>10\n#### 10",
}
_GREETING: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Write one polite sentence that declines an invitation."},
        {"role": "assistant", "content": "Thank you for asking, but I am not able to come."},
    ]
}

REWRITES_REQUESTS: dict[str, Any] = {
    "one": {"summary": "One word problem", "value": {"demonstrations": [_APPLES]}},
    "sampling": {
        "summary": "Two shapes of rows, four candidates each",
        "value": {
            "demonstrations": [_APPLES, _GREETING],
            "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 320, "samples": 4, "seed": 0},
        },
    },
    "adapter": {
        "summary": "By one version of an adapter; `math` alone is its active version",
        "value": {"demonstrations": [_APPLES], "adapter": "math@3"},
    },
}
ACTIVATE_REQUESTS: dict[str, Any] = {"third": {"summary": "The third version", "value": {"version": 3}}}
MISMATCH_REQUESTS: dict[str, Any] = {
    "two": {
        "summary": "One sum, and a row that lacks its answer",
        "value": {
            "demonstrations": [
                {"id": "sum", "question": "What is 2 + 2?", "answer": "4"},
                {"question": "What is 3 + 3?"},
            ]
        },
    }
}

_TARGET = "There are 3 * 4 = 12 apples. After eating 2 there are 12 - 2 = 10 left. The answer is \\boxed{10}."

REWRITES_ANSWER: dict[str, Any] = {
    "data": [
        {
            "id": "apples",
            "prompt": [{"role": "user", "content": _APPLES["question"]}],
            "completion": [{"role": "assistant", "content": _TARGET}],
            "status": "rewritten",
            "proposer": "rewrite",
            "attempts": 2,
            "gate": {"passed": True, "checks": [{"name": "math_answer", "passed": True, "detail": "10 = 10"}]},
            "mismatch": {
                "expert": {"nll": 1.62, "p95": 5.9, "tokens": 34},
                "target": {"nll": 0.71, "p95": 2.8, "tokens": 41},
            },
            "adapter": None,
            "model": "smollm2-135m",
            "error": None,
            "source": _APPLES,
        }
    ],
    "usage": {"prompt_tokens": 212, "completion_tokens": 331, "scored_tokens": 151},
    "model": "smollm2-135m",
}
MISMATCH_ANSWER: dict[str, Any] = {
    "data": [
        {
            "id": "sum",
            "mismatch": {"nll": 0.7, "p95": 1.15, "tokens": 2},
            "tokens": [{"text": "4", "nats": 1.2}, {"text": "<|im_end|>", "nats": 0.2}],
            "error": None,
        },
        {
            "id": "row-2",
            "mismatch": None,
            "tokens": [],
            "error": {
                "line": 2,
                "field": "answer",
                "message": "'answer': missing: the row has a question but neither 'solution' nor 'answer'",
            },
        },
    ],
    "model": "smollm2-135m",
}
ADAPTERS_ANSWER: dict[str, Any] = {
    "data": [
        {
            "name": "math",
            "active": 3,
            "versions": [
                {"version": 2, "base_model": "smollm2-135m", "loaded": True},
                {"version": 3, "base_model": "smollm2-135m", "loaded": True},
            ],
        }
    ],
    "default": "math@3",
}
ACTIVATE_ANSWER: dict[str, Any] = {"name": "math", "active": 3, "previous": 2}

_ERRORS: dict[int, tuple[str, dict[str, Any]]] = {
    400: (
        "The body is not strictly JSON",
        error_body(
            "the body is not JSON: Expecting value at line 3, column 12",
            "invalid_request_error",
            "invalid_json",
            line=3,
        ),
    ),
    401: ("The bearer key is missing or unknown", error_body("no key", "authentication_error", "invalid_api_key")),
    403: (
        "The bearer key lacks the scope",
        error_body("this key has no scope 'rewrite'", "permission_error", "insufficient_scope"),
    ),
    404: (
        "Unknown strategy, adapter, file, job or path",
        error_body("no strategy 'x': known are default", "invalid_request_error", "unknown_strategy", param="strategy"),
    ),
    405: ("Wrong method", error_body("use POST", "invalid_request_error", "method_not_allowed")),
    408: ("The body came too slowly", error_body("60 seconds", "invalid_request_error", "body_timeout")),
    409: (
        "It contradicts what is there",
        error_body("math@4 was trained on other", "invalid_request_error", "adapter_refused", param="version"),
    ),
    411: (
        "The upload does not say how long it is; only of a service on Ray",
        error_body("send its Content-Length", "invalid_request_error", "length_required"),
    ),
    413: (
        "Too many bytes or demonstrations",
        error_body("300 demonstrations, 256 at most", "invalid_request_error", "too_many_rows", param="demonstrations"),
    ),
    415: (
        "Not declared as what the route takes",
        error_body("got 'text/plain'", "invalid_request_error", "unsupported_media_type"),
    ),
    416: (
        "The file has no such range",
        error_body("the file has no such range", "invalid_request_error", "invalid_range", param="range"),
    ),
    422: (
        "A field has a value that makes no sense",
        error_body("sampling.top_p: too large", "invalid_request_error", "less_than_equal", param="sampling.top_p"),
    ),
    429: ("The house is full; see Retry-After", error_body("try later", "rate_limit_error", "queue_full")),
    500: ("A defect of the service", error_body("see the log", "server_error", "internal_error")),
    503: (
        "Starting, replacing its engine or shutting down; see Retry-After",
        error_body("the engine is starting", "server_error", "engine_unavailable"),
    ),
    504: ("The work took too long", error_body("1800 seconds", "server_error", "work_timeout")),
}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: _error_response(status) for status in statuses}


def answer(example: dict[str, Any], model: type) -> dict[int | str, dict[str, Any]]:
    """The `responses` entry of success, with an example."""
    return {200: {"model": model, "content": {"application/json": {"example": example}}}}


def _error_response(status: int) -> dict[str, Any]:
    description, example = _ERRORS[status]
    response: dict[str, Any] = {
        "model": ErrorResponse,
        "description": description,
        "content": {"application/json": {"example": example}},
    }
    if status in (429, 503):
        response["headers"] = _RETRY_AFTER
    return response
