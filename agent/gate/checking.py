"""The gate alone over many rows: demonstrations with a `candidate` beside them in, verdicts out.

Not here: reading files (`agent.intake`) and printing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import GateError
from agent.gate import Gate
from agent.pipeline import map_in_order


@dataclass(slots=True)
class CheckSummary:
    """Counts over the results of `check_rows`.

    Attributes:
        passed, failed, errors: rows by status.
        failed_checks: failed rows by the check that decided.
        labelled_accept, labelled_reject: rows with a verdict that carry a `label`.
        false_accepts, false_rejects: ids of the rows whose label says otherwise than the verdict.
    """

    passed: int = 0
    failed: int = 0
    errors: int = 0
    failed_checks: Counter[str] = field(default_factory=Counter)
    labelled_accept: int = 0
    labelled_reject: int = 0
    false_accepts: list[str] = field(default_factory=list)
    false_rejects: list[str] = field(default_factory=list)

    def add(self, result: dict[str, Any]) -> None:
        """Count one result of `check_rows`."""
        if result["status"] == "error":
            self.errors += 1
            return
        passed = result["status"] == "passed"
        if passed:
            self.passed += 1
        else:
            self.failed += 1
            self.failed_checks.update(c["name"] for c in result["gate"]["checks"] if not c["passed"])
        if result["label"] == "accept":
            self.labelled_accept += 1
            if not passed:
                self.false_rejects.append(result["id"])
        elif result["label"] == "reject":
            self.labelled_reject += 1
            if passed:
                self.false_accepts.append(result["id"])


def check_rows(
    gate: Gate, rows: Iterable[Demonstration | BadRow], *, concurrency: int = 64
) -> AsyncGenerator[dict[str, Any], None]:
    """One result a row, in the rows' order: `{"id", "status", "gate", "label", "error"}`.

    A row's source carries `candidate` (text), and may carry `finished` (true unless said) and `label` (`accept` or
    `reject`). `status` is `passed`, `failed` or `error`; only an error has `error` (`line`, `field`, `message`).

    Raises:
        ModelError: the embedding model that a `text` row needs cannot be loaded.
    """

    async def one(row: Demonstration | BadRow) -> dict[str, Any]:
        if isinstance(row, BadRow):
            return _error(row, row.message, row.field)
        return await _check_row(gate, row)

    return map_in_order(one, rows, concurrency)


async def _check_row(gate: Gate, row: Demonstration) -> dict[str, Any]:
    candidate, finished = row.source.get("candidate"), row.source.get("finished", True)
    label = row.source.get("label")
    if not isinstance(candidate, str):
        what = "is missing" if "candidate" not in row.source else "is no text"
        return _error(row, f"`candidate` {what}: give the text to check beside the demonstration", "candidate")
    if not isinstance(finished, bool):
        return _error(row, "`finished` is neither true nor false", "finished")
    if label not in (None, "accept", "reject"):
        return _error(row, f"`label` is {label!r}: use accept, reject, or leave it out", "label")
    try:
        verdict = await gate.check(row, candidate, finished=finished)
    except GateError as error:
        return _error(row, str(error), "task")
    status = "passed" if verdict.passed else "failed"
    return {"id": row.id, "status": status, "gate": verdict.as_dict(), "label": label, "error": None}


def _error(row: Demonstration | BadRow, message: str, field_name: str | None) -> dict[str, Any]:
    error = {"line": row.line, "field": field_name, "message": message}
    return {"id": row.id, "status": "error", "gate": None, "label": None, "error": error}
