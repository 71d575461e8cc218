"""What becomes of the samples of one attempt; candidates are scripted, the gate is the real one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.engine import Completion, FinishReason, Sampling
from agent.gate import Gate
from agent.rewriter import Rewriter
from agent.settings import GateSettings, RewriteSettings, Step
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_tokenizer

QUESTION = "Ann has 12 pears and buys 3 bags with 4 pears each. How many pears does she have?"
GOOD = "Ann buys 3 * 4 = 12 pears. So she has 12 + 12 = 24 pears. The answer is \\boxed{24}."


@pytest.mark.parametrize("reasons", [("stop", "length"), ("length", "stop")])
async def test_of_equal_texts_one_that_is_finished_counts(reasons: tuple[FinishReason, ...]) -> None:
    class Engine(ScriptedEngine):
        async def generate(
            self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
        ) -> list[Completion]:
            return [Completion([5], GOOD, [-1.0], reason) for reason in reasons]

    chat = ChatFormat(tiny_tokenizer())
    gate = Gate(GateSettings())
    rewriter = Rewriter(Engine(chat, GOOD), chat, gate, (Step(proposer="solve", samples=2),), RewriteSettings())
    row = Demonstration("a", (Message("user", QUESTION),), "3*4=12\n12+12=24\n#### 24", "24")
    assert (await rewriter.rewrite(row)).record.status == "self_solved"
