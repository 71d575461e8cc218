"""The gate alone over a file's rows: what comes out for which row, and the summary."""

from __future__ import annotations

from typing import Any

from agent.demonstrations import BadRow, Demonstration, Message
from agent.gate import Gate
from agent.gate.checking import CheckSummary, check_rows
from agent.settings import GateSettings


def row(identifier: str, line: int, **source: Any) -> Demonstration:
    return Demonstration(
        identifier,
        (Message("user", "How many?"),),
        "6*7=42\n#### 42",
        task=source.get("task"),
        source=source,
        line=line,
    )


async def check(*rows: Demonstration | BadRow) -> list[dict[str, Any]]:
    gate = Gate(GateSettings())
    results = [result async for result in check_rows(gate, rows, concurrency=2)]
    await gate.aclose()
    return results


async def test_results_come_in_the_order_of_the_rows() -> None:
    rows = [row(f"row-{n}", n, candidate=f"6 * 7 = 42. The answer is {n}.") for n in range(1, 60)]
    results = await check(*rows)
    assert [r["id"] for r in results] == [r.id for r in rows]
    assert [r["id"] for r in results if r["status"] == "passed"] == ["row-42"]


async def test_a_result_carries_the_verdict() -> None:
    (result,) = await check(row("a", 1, candidate="6 * 7 = 42\n#### 42", label="accept"))
    assert result == {
        "id": "a",
        "status": "passed",
        "gate": {
            "passed": True,
            "checks": [
                {"name": "hygiene", "passed": True, "detail": "clean"},
                {"name": "language", "passed": True, "detail": "as the expert's"},
                {"name": "math_answer", "passed": True, "detail": "42 = 42"},
                {"name": "arithmetic", "passed": True, "detail": "1 equations hold"},
                {"name": "grounding", "passed": True, "detail": "the question gives no numbers"},
                {"name": "steps", "passed": True, "detail": "all 1 results of the expert come up"},
            ],
        },
        "label": "accept",
        "error": None,
    }


async def test_a_row_that_cannot_be_checked_is_an_error_with_line_and_field() -> None:
    results = await check(
        row("a", 1),
        row("b", 2, candidate=42),
        row("c", 3, candidate="x", finished="no"),
        row("d", 4, candidate="x", label="good"),
        row("e", 5, candidate="x", task="poem"),
        BadRow("f", 6, "no JSON", field=None),
    )
    assert [r["status"] for r in results] == ["error"] * 6
    assert [(r["error"]["line"], r["error"]["field"]) for r in results] == [
        (1, "candidate"),
        (2, "candidate"),
        (3, "finished"),
        (4, "label"),
        (5, "task"),
        (6, None),
    ]


async def test_an_unfinished_candidate_fails_hygiene() -> None:
    (result,) = await check(row("a", 1, candidate="6 * 7 = 42\n#### 42", finished=False))
    assert result["gate"]["checks"][0]["detail"] == "cut off: no end-of-turn token"


async def test_the_summary_counts_checks_and_wrong_verdicts() -> None:
    summary = CheckSummary()
    for result in await check(
        row("good", 1, candidate="6 * 7 = 42\n#### 42", label="accept"),
        row("bad", 2, candidate="#### 43", label="reject"),
        row("false-accept", 3, candidate="6 * 7 = 42\n#### 42", label="reject"),
        row("false-reject", 4, candidate="forty-two", label="accept"),
        row("empty", 5, candidate=""),
        row("broken", 6),
    ):
        summary.add(result)
    assert (summary.passed, summary.failed, summary.errors) == (2, 3, 1)
    assert summary.failed_checks == {"math_answer": 2, "hygiene": 1}
    assert (summary.labelled_accept, summary.labelled_reject) == (2, 2)
    assert (summary.false_accepts, summary.false_rejects) == (["false-accept"], ["false-reject"])
