"""What is counted of the rows that go by."""

from __future__ import annotations

from typing import Any

import pytest

from agent.mismatch import Surprisal
from agent.usage import Usage
from cli.console import say
from cli.figures import Figures
from cli.summary import Summary


def row(status: str, proposer: str, expert: float | None = None, target: float | None = None) -> dict[str, Any]:
    figures = {"expert": None if expert is None else {"nll": expert}, "target": target and {"nll": target}}
    return {"status": status, "proposer": proposer, "mismatch": figures, "error": {"message": "too long"}}


def test_rows_are_counted_by_what_became_of_them() -> None:
    summary = Summary()
    for counted in (row("self_solved", "solve"), row("rewritten", "hint"), row("rewritten", "hint")):
        summary.add(counted, Usage())
    summary.add(row("fallback", "expert"), Usage())
    summary.add(row("error", "expert"), Usage())
    figures = summary.as_dict()
    assert figures["accepted"] == {"solve": 1, "hint": 2, "rewrite": 0}
    assert (figures["rows"], figures["fallback"], figures["errors"]) == (5, 1, 1)
    assert figures["error_reasons"] == {"too long": 1}


def test_mismatch_is_the_mean_over_rows_that_have_both() -> None:
    summary = Summary()
    summary.add(row("rewritten", "hint", 2.0, 1.0), Usage())
    summary.add(row("fallback", "expert", 4.0, 4.0), Usage())
    summary.add(row("error", "expert", 9.0), Usage())
    assert summary.as_dict()["mismatch"] == {"expert": 3.0, "target": 2.5}


def test_no_rows_have_no_mismatch() -> None:
    assert Summary().as_dict()["mismatch"] == {"expert": None, "target": None}


def test_tokens_add_up() -> None:
    summary = Summary()
    summary.add(row("fallback", "expert"), Usage(1, 2, 3))
    summary.add(row("fallback", "expert"), Usage(10, 20, 30))
    assert summary.as_dict()["tokens"] == {"prompt": 11, "completion": 22, "scored": 33}


def test_rows_that_were_there_before_are_not_speed() -> None:
    summary = Summary()
    summary.add(row("fallback", "expert"), Usage())
    summary.start()
    figures = summary.as_dict()
    assert (figures["rows"], figures["rows_before"], figures["rows_per_s"]) == (1, 1, 0.0)


def test_the_table_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    summary.add(row("rewritten", "hint", 2.0, 1.0), Usage())
    summary.print()
    out, err = capsys.readouterr()
    assert out == ""
    assert "accepted: hint" in err
    assert "100.0 %" in err


def test_text_from_rows_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a \x1b[31mred\x1b[0m [bold]word[/bold]\r")
    assert capsys.readouterr().err == "a \ufffd[31mred\ufffd[0m [bold]word[/bold]\ufffd\n"


@pytest.fixture
def figures() -> Figures:
    figures = Figures()
    figures.add(Surprisal([1, 2], ["a", " b"], [1.0, 3.0]))
    figures.add(Surprisal([1, 1], ["a", "a"], [0.0, 1.0]))
    figures.errors += 1
    return figures


def test_surprisal_of_a_file_is_the_mean_over_rows(figures: Figures) -> None:
    found = figures.as_dict()
    assert (found["rows"], found["errors"], found["tokens"]) == (3, 1, 4)
    assert (found["nll"], found["p50"], found["p95"]) == (1.25, 1.0, 2.7)


def test_tokens_are_ranked_by_their_share_of_the_surprisal(figures: Figures) -> None:
    assert figures.as_dict()["most_surprising"] == [
        {"token": " b", "times": 1, "nats": 3.0, "share": 0.6},
        {"token": "a", "times": 3, "nats": 0.667, "share": 0.4},
    ]


def test_a_file_without_readable_rows_has_no_figures() -> None:
    assert Figures().as_dict() == {"rows": 0, "errors": 0, "tokens": 0}
