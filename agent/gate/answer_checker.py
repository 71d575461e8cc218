"""Comparing a candidate's final answer with the reference, without ever hanging or raising on what it is given.

Plain numbers, words and equal spellings are decided here and at once; everything else goes to a worker process
with a wall-clock limit (`answer_process`).
"""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agent.gate.answer_process import AnswerProcess
from agent.gate.equivalence import MAX_CHARS, decide_exactly
from agent.gate.notation import plain


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """Whether two answers are equal, and in words for the verdict."""

    equal: bool
    detail: str


class AnswerChecker:
    """Compares final answers; belongs to no event loop and may be shared by several.

    Attributes:
        timeouts: comparisons that were cut off so far; each counts as "not equal".
    """

    def __init__(self, limit_s: float = 5.0, workers: int = 1) -> None:
        self.timeouts = 0
        self._limit_s = limit_s
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="answers")
        self._processes: queue.SimpleQueue[AnswerProcess] = queue.SimpleQueue()
        for _ in range(workers):
            self._processes.put(AnswerProcess(limit_s))

    async def equal(self, candidate: str, reference: str, *, percent_asked: bool = False) -> AnswerComparison:
        """Compare two answers as their authors typeset them.

        Args:
            candidate: the candidate's final answer, without its box.
            reference: the answer it must equal.
            percent_asked: the question wants a percentage, so that 50% means 50 and not 0.5.
        """
        if max(len(candidate), len(reference)) > MAX_CHARS:
            return AnswerComparison(False, f"answer longer than {MAX_CHARS} characters")
        a, b = plain(candidate), plain(reference)
        same = decide_exactly(a, b, percent_asked=percent_asked)
        if same is None:
            loop = asyncio.get_running_loop()
            same = await loop.run_in_executor(self._threads, self._ask, a, b, percent_asked)
        if same is None:
            self.timeouts += 1
            return AnswerComparison(False, f"{a} ? {b}: undecided after {self._limit_s:g} s")
        return AnswerComparison(same, f"{a} {'=' if same else '≠'} {b}")

    def close(self) -> None:
        """Finish the comparison under way, then end the worker processes."""
        self._threads.shutdown(wait=True)
        while not self._processes.empty():
            self._processes.get().close()

    def _ask(self, candidate: str, reference: str, percent_asked: bool) -> bool | None:
        process = self._processes.get()
        try:
            return process.ask(candidate, reference, percent_asked=percent_asked)
        finally:
            self._processes.put(process)
