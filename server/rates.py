"""How much one key may ask for a minute: token buckets, one of requests and one of rows for each key.

A bucket holds what a minute allows and fills evenly, so a key that was quiet may send a minute's worth at once. There
is one HTTP process to a state folder, so these are the limits of the whole service; they start anew when it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil

from server.exceptions import RateLimitError
from server.keys import Caller
from server.settings import LimitSettings

_MINUTE_S = 60.0


class Rates:
    """The buckets of all keys. Requests without a key share one.

    Args:
        settings: what a minute allows; None for no limit.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = _Buckets(settings.requests_per_minute, clock)
        self._rows = _Buckets(settings.rows_per_minute, clock)

    def take_request(self, caller: Caller) -> None:
        """Count one request. Raises RateLimitError when the caller has sent too many."""
        self._requests.take(caller.account, 1, "requests")

    def take_rows(self, caller: Caller, rows: int) -> None:
        """Count the rows of a request. Raises RateLimitError when the caller has sent too many."""
        self._rows.take(caller.account, rows, "rows")


class _Buckets:
    """Of each account: what is left of its minute, and when that was so. Only accounts that exist get here."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, account: str, amount: int, what: str) -> None:
        if self._per_minute is None:
            return
        now = self._clock()
        left, since = self._left.get(account, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / _MINUTE_S)
        if left >= amount:
            self._left[account] = (left - amount, now)
            return
        self._left[account] = (left, now)
        raise RateLimitError(
            f"this key may send {self._per_minute} {what} a minute: try again later",
            code=f"{what}_per_minute",
            retry_after_s=max(1, ceil((amount - left) * _MINUTE_S / self._per_minute)),
        )
