"""Answers compared symbolically in the worker process: what is equal, what is not, and that nothing hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.gate.answer_checker import AnswerChecker
from agent.gate.answer_process import AnswerProcess

ENDLESS = (r"\binom{10^{9}}{10^{8}}", "7")


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    checker = AnswerChecker(limit_s=120.0)
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (r"\sqrt{18}", r"3\sqrt{2}"),
        ("(x-1)(x+1)", "x^2-1"),
        ("2(3)", "6"),
        ("0.5x", r"\frac{x}{2}"),
        ("2^{0.5}", r"\sqrt2"),
        (r"1.5\times10^3", "1500"),
        ("5!", "120"),
        (r"\sin^2 x+\cos^2 x", "1"),
        (r"\begin{pmatrix}\frac22 & 2\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        (r"3-\sqrt2, 3+\sqrt2", r"3\pm\sqrt{2}"),
        ("y-2x=3", "y=2x+3"),
    ],
)
async def test_expressions_of_one_value_are_equal(checker: AnswerChecker, candidate: str, reference: str) -> None:
    assert (await checker.equal(candidate, reference)).equal


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("3.14159265358979", r"\pi"),
        ("1.41421356237", r"\sqrt{2}"),
        ("2(3)", "5"),
        ("5 5", "10"),
        (r"\frac{4}{2}\frac{1}{2}", r"\frac{5}{2}"),
        ("1/2x", r"\frac{x}{2}"),
        ("x+10^{-20}", "x"),
        (r"\sqrt{3}+10^{-25}", r"\sqrt{3}"),
        ("X", "x"),
        (r"\cos 20", r"\cos 20^\circ"),
        ("1011_3", "1011_2"),
        ("x'", "x"),
        ("3-4i", "3+4i"),
        (r"\infty-\infty", "0"),
        (r"\frac{0}{0}", "1"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        ("__import__('os')", "0"),
    ],
)
async def test_expressions_that_lenient_graders_take_for_equal_are_not(
    checker: AnswerChecker, candidate: str, reference: str
) -> None:
    assert not (await checker.equal(candidate, reference)).equal


Valued = tuple[str, Fraction]


def _binary(pair: tuple[Valued, Valued, str]) -> Valued:
    (a, x), (b, y), sign = pair
    if sign == "frac":
        return (rf"\frac{{{a}}}{{{b}}}", x / y) if y else (a, x)
    value = {"+": x + y, "-": x - y, "": x * y, r"\cdot ": x * y}[sign]
    return f"({a}){sign}({b})", value


def _power(base: Valued) -> Valued:
    return f"({base[0]})^{{2}}", base[1] ** 2


numbers = st.integers(0, 99).map(lambda n: (str(n), Fraction(n)))
decimals = st.integers(0, 999).map(lambda n: (f"{n / 100:.2f}", Fraction(n, 100)))
expressions = st.recursive(
    numbers | decimals,
    lambda s: st.tuples(s, s, st.sampled_from(["+", "-", "", r"\cdot ", "frac"])).map(_binary) | s.map(_power),
    max_leaves=5,
)


@settings(max_examples=150)
@given(expressions, st.integers(-2, 2))
def test_an_expression_equals_its_value_and_no_other(checker: AnswerChecker, valued: Valued, off: int) -> None:
    text, value = valued
    claimed = value + off
    result = asyncio.run(checker.equal(text, rf"\frac{{{claimed.numerator}}}{{{claimed.denominator}}}"))
    assert result.equal == (off == 0), (text, claimed)


@settings(max_examples=100)
@given(st.text(alphabet=r"0123456789x.,/\frac{}sqrt()[]<>=%+-*^!_|& ", max_size=30))
def test_garbage_gets_an_answer(checker: AnswerChecker, text: str) -> None:
    assert asyncio.run(checker.equal(text, "x+1")).equal in (True, False)


async def test_an_endless_comparison_is_cut_off_counted_and_followed_by_others() -> None:
    checker = AnswerChecker(limit_s=1.0)
    cut_off = await checker.equal(*ENDLESS)
    assert (cut_off.equal, checker.timeouts) == (False, 1)
    assert "undecided after 1 s" in cut_off.detail
    process = checker._processes.get()
    process._limit_s = 120.0  # for what is not endless a slow machine may take its time
    checker._processes.put(process)
    assert (await checker.equal("(x-1)(x+1)", "x^2-1")).equal
    assert checker.timeouts == 1
    checker.close()


async def test_a_worker_killed_from_outside_is_replaced() -> None:
    process = AnswerProcess(limit_s=120.0)
    assert process.ask("x+x", "2x", percent_asked=False) is True
    worker = process._process
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert process.ask("x+x", "2x", percent_asked=False) is True
    process.close()


async def test_several_workers_compare_at_the_same_time() -> None:
    checker = AnswerChecker(limit_s=120.0, workers=2)
    results = await asyncio.gather(*(checker.equal(f"x+{n}+x", f"2x+{n % 7}") for n in range(20)))
    assert [n for n, r in enumerate(results) if r.equal] == list(range(7))
    checker.close()


async def test_an_answer_beyond_the_length_limit_is_not_compared() -> None:
    checker = AnswerChecker()
    result = await checker.equal("1" * 301, "1" * 301)
    assert (result.equal, result.detail) == (False, "answer longer than 300 characters")
    checker.close()


def test_no_worker_outlives_its_checker() -> None:
    checker = AnswerChecker(limit_s=120.0)
    asyncio.run(checker.equal("x+x", "2x"))
    process = checker._processes.get()
    checker._processes.put(process)
    worker = process._process
    assert isinstance(worker, subprocess.Popen)
    checker.close()
    assert worker.poll() is not None
