"""The expert's intermediate results must come up in a rewrite."""

from __future__ import annotations

import pytest

from agent.gate.steps import check_steps

EXPERT = "3*4=12 pears\n12+12=24\n#### 24"


@pytest.mark.parametrize(
    "candidate",
    [
        "She buys 3 * 4 = 12 pears and then has 12 + 12 = 24. The answer is 24.",
        "Three bags of four make 12. With the first twelve that is 24.",
        "That is \\(3 \\times 4 = 12\\), so \\(12 + 12 = 24\\).",
    ],
)
def test_a_rewrite_with_all_results_passes(candidate: str) -> None:
    assert check_steps(candidate, EXPERT).passed


def test_a_missing_result_is_named() -> None:
    check = check_steps("She has 6 * 4 = 24 pears. The answer is 24.", EXPERT)
    assert not check.passed
    assert "12" in check.detail


def test_a_fraction_that_the_candidate_works_out_counts() -> None:
    assert check_steps("So 1 - 1/4 = 3/4 of the cake is left.", "1-1/4=3/4").passed
    assert not check_steps("So 1 - 1/4 = 1/2 of the cake is left.", "1-1/4=3/4").passed


def test_thousands_separators_and_decimals_are_the_same_number() -> None:
    assert check_steps("It costs $1,250.00 in all.", "5*250=1250\n#### 1250").passed


def test_an_expert_without_equations_asks_for_nothing() -> None:
    assert check_steps("Anything.", "It is known.\n#### 4").passed


def test_a_result_beyond_every_float_is_not_asked_for() -> None:
    power = "*".join(["10^60"] * 6)
    assert check_steps("no", f"{power} = {power}").passed
