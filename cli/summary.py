"""What became of a file, counted while its rows go by: the table at the end of `rewright rewrite`."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from agent.usage import Usage
from cli.console import print_table

_REASONS_SHOWN = 5
_PROPOSERS = ("solve", "hint", "rewrite")


class Summary:
    """Counts output rows; those added before `start` were there already and do not count as speed."""

    def __init__(self) -> None:
        self.rows = 0
        self.errors = 0
        self.usage = Usage()
        self._accepted: Counter[str] = Counter()
        self._fallbacks = 0
        self._reasons: Counter[str] = Counter()
        self._expert_nll = 0.0
        self._target_nll = 0.0
        self._scored = 0
        self._started = time.monotonic()
        self._rows_before = 0

    def start(self) -> None:
        """From here on rows are this run's own."""
        self._started = time.monotonic()
        self._rows_before = self.rows

    def add(self, row: dict[str, Any], usage: Usage) -> None:
        """Count one output row."""
        self.rows += 1
        self.usage += usage
        if row["status"] == "error":
            self.errors += 1
            self._reasons[row["error"]["message"]] += 1
            return
        if row["status"] == "fallback":
            self._fallbacks += 1
        else:
            self._accepted[row["proposer"]] += 1
        expert, target = row["mismatch"]["expert"], row["mismatch"]["target"]
        if expert and target:
            self._scored += 1
            self._expert_nll += expert["nll"]
            self._target_nll += target["nll"]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`. Mismatch is the mean over rows of nats per token; tokens and speeds are of this run."""
        seconds = time.monotonic() - self._started
        return {
            "rows": self.rows,
            "rows_before": self._rows_before,
            "accepted": {name: self._accepted[name] for name in _PROPOSERS},
            "fallback": self._fallbacks,
            "errors": self.errors,
            "error_reasons": dict(self._reasons.most_common(_REASONS_SHOWN)),
            "mismatch": {
                "expert": round(self._expert_nll / self._scored, 4) if self._scored else None,
                "target": round(self._target_nll / self._scored, 4) if self._scored else None,
            },
            "tokens": {
                "prompt": self.usage.prompt_tokens,
                "completion": self.usage.completion_tokens,
                "scored": self.usage.scored_tokens,
            },
            "seconds": round(seconds, 2),
            "rows_per_s": round((self.rows - self._rows_before) / seconds, 3),
            "completion_tokens_per_s": round(self.usage.completion_tokens / seconds, 1),
        }

    def print(self) -> None:
        """The table, on standard error."""
        figures = self.as_dict()
        rows: list[tuple[str, object, str]] = [
            (f"accepted: {name}", count, self._share(count)) for name, count in figures["accepted"].items()
        ]
        rows.append(("fallback to the expert", self._fallbacks, self._share(self._fallbacks)))
        rows.append(("errors", self.errors, self._share(self.errors)))
        rows += [(f"  {reason[:90]}", count, "") for reason, count in figures["error_reasons"].items()]
        if self._rows_before:
            rows.append(("rows that were there before", self._rows_before, self._share(self._rows_before)))
        rows.append(("rows", self.rows, f"{figures['rows_per_s']:.2f}/s"))
        if self.usage != Usage():
            speed = f"{figures['completion_tokens_per_s']:.0f}/s"
            rows.append(("completion tokens", self.usage.completion_tokens, speed))
        if self._scored:
            rows.append(("mismatch of the expert", figures["mismatch"]["expert"], "nats/token"))
            rows.append(("mismatch of the target", figures["mismatch"]["target"], "nats/token"))
        print_table("Summary", ("what", "how many", "share"), rows)

    def _share(self, count: int) -> str:
        return f"{100 * count / self.rows:.1f} %" if self.rows else ""
