"""Questions to a running service that are answered at once: one request, one JSON object.

Not here: sending work to it (`cli.client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from cli.client import answered_object, bearer, refusal, service_address
from cli.exceptions import ServiceError

_TIMEOUT_S = 600.0  # an adapter is read and loaded by every engine before the answer comes


def ask_service(
    url: str,
    key: str | None,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    fields: Sequence[str],
) -> dict[str, Any]:
    """The answer of a service, decoded.

    Args:
        url: base address, `http://127.0.0.1:8000`.
        key: bearer key, None for a service without keys.
        method: `GET` or `POST`.
        path: below the base address.
        body: sent as JSON, None for none.
        fields: what the answer must have.

    Raises:
        UsageError: the address is none, or the key cannot travel in a header.
        ServiceError: the service cannot be reached, or refuses; says why.
    """
    address = service_address(url)
    try:
        answer = httpx.request(
            method, f"{str(address).rstrip('/')}{path}", headers=bearer(key), json=body, timeout=_TIMEOUT_S
        )
    except httpx.RequestError as error:
        raise ServiceError(f"{url} cannot be reached: {str(error) or type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK:
        raise refusal(url, answer)
    content = answered_object(url, answer)
    if not all(field in content for field in fields):
        raise ServiceError(f"{url} answered without {' and '.join(fields)}: is it this service, and this version?")
    return content
