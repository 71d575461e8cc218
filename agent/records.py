"""The output row: what became of one demonstration (design contract, section Records).

Not here: writing files (`agent.output`), deciding (`agent.rewriter`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from agent.demonstrations import BadRow, Demonstration

Status = Literal["rewritten", "self_solved", "fallback", "error"]
# Of rows whose words are the model's own, having passed the gate.
ACCEPTED: tuple[Status, ...] = ("rewritten", "self_solved")
Proposer = Literal["solve", "hint", "rewrite", "expert"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the gate: its name, whether it passed, and why in a few words."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision on one candidate: the conjunction of its checks, in the order asked."""

    passed: bool
    checks: tuple[Check, ...]

    @property
    def failed_check(self) -> Check | None:
        """The check that decided against the candidate, None when it passed."""
        return next((c for c in self.checks if not c.passed), None)

    def as_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in self.checks],
        }


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How surprised the base model is by one target, given the plain question.

    Attributes:
        nll: mean surprisal, nats per token, over completion tokens and the end-of-turn token.
        p95: 95th percentile of the per-token surprisal, nats.
        tokens: number of scored tokens.
    """

    nll: float
    p95: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        return {"nll": round(self.nll, 6), "p95": round(self.p95, 6), "tokens": self.tokens}


@dataclass(frozen=True, slots=True)
class Record:
    """One output row. `as_dict` is the shape that is written and sent."""

    demonstration: Demonstration
    status: Status
    proposer: Proposer
    target: str
    attempts: int
    gate: Verdict | None
    expert_mismatch: Mismatch | None
    target_mismatch: Mismatch | None
    adapter: str | None
    model: str
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        demonstration = self.demonstration
        row: dict[str, Any] = {
            "id": demonstration.id,
            "prompt": [{"role": m.role, "content": m.content} for m in demonstration.prompt],
            "completion": [{"role": "assistant", "content": self.target}],
            "status": self.status,
            "proposer": self.proposer,
            "attempts": self.attempts,
            "gate": self.gate.as_dict() if self.gate else None,
            "mismatch": {
                "expert": self.expert_mismatch.as_dict() if self.expert_mismatch else None,
                "target": self.target_mismatch.as_dict() if self.target_mismatch else None,
            },
            "adapter": self.adapter,
            "model": self.model,
            "error": {"line": demonstration.line, "field": None, "message": self.error} if self.error else None,
            "source": demonstration.source,
        }
        return row


def error_row(bad: BadRow, model: str) -> dict[str, Any]:
    """The output row of an input row that could not be read.

    It keeps the columns of every other row, so that a file with errors has one schema. Its two turns are
    empty but there, because TRL looks into the first turn of every row; a trainer that does not filter on
    `status` sees an empty answer to an empty question.
    """
    return {
        "id": bad.id,
        "prompt": [{"role": "user", "content": ""}],
        "completion": [{"role": "assistant", "content": ""}],
        "status": "error",
        "proposer": "expert",
        "attempts": 0,
        "gate": None,
        "mismatch": {"expert": None, "target": None},
        "adapter": None,
        "model": model,
        "error": {"line": bad.line, "field": bad.field, "message": bad.message},
        "source": bad.source,
    }


def file_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The form of an output row in files: our own columns keep one type, whatever the row.

    Readers of JSON lines take a column's type from the first megabytes, and a later row that does not fit
    makes the whole file unreadable to them. So what is null in most rows (`error`, `adapter`) is empty instead.
    `source` stays the object it was: it is as regular as the input, which such readers could not load either
    where it is not. In Parquet it is JSON text.
    """
    error = row["error"] or {}
    return {
        **row,
        "adapter": row["adapter"] or "",
        "error": {
            "line": error.get("line") or 0,
            "field": error.get("field") or "",
            "message": error.get("message") or "",
        },
    }


def made_of(written: Mapping[str, Any], row: Demonstration | BadRow) -> bool:
    """Whether an output row was made from this very input row, whichever form either went through since."""
    return json.dumps(written["source"]) == json.dumps(row.source)


def is_row(value: object) -> bool:
    """Whether a value from elsewhere is an output row, as far as this program reads one."""
    if not isinstance(value, dict) or COLUMNS - value.keys():
        return False
    error, mismatch = value["error"], value["mismatch"]
    return (
        isinstance(value["id"], str)
        and value["status"] in get_args(Status)
        and value["proposer"] in get_args(Proposer)
        and isinstance(mismatch, dict)
        and all(_is_figures(mismatch.get(whose, "")) for whose in ("expert", "target"))
        and (isinstance(error.get("message"), str) if isinstance(error, dict) else error is None)
        and (error is not None or value["status"] != "error")
    )


def _is_figures(value: object) -> bool:
    return value is None or (isinstance(value, dict) and isinstance(value.get("nll"), int | float))


def read_file_row(line: bytes) -> dict[str, Any] | None:
    """The row in the form of `file_row` that a line holds; None for any other line: another program's, or edited."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if is_row(row) and isinstance(row["error"], dict) else None


COLUMNS = error_row(BadRow("", 0, ""), "").keys()
