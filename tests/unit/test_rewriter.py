"""What becomes of the samples of one attempt; candidates are scripted, the gate is the real one."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.engine import Completion, FinishReason, Sampling
from agent.exceptions import EngineMemoryError, PromptTooLongError
from agent.gate import Gate
from agent.mismatch import surprisal
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


async def test_an_error_keeps_the_expert_and_names_no_adapter() -> None:
    class Full(ScriptedEngine):
        async def generate(
            self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
        ) -> list[Completion]:
            raise EngineMemoryError(f"no memory for {adapter}")

    chat = ChatFormat(tiny_tokenizer())
    steps = (Step(proposer="rewrite"),)
    rewriter = Rewriter(Full(chat, GOOD), chat, Gate(GateSettings()), steps, RewriteSettings(), "math@1")
    row = Demonstration("a", (Message("user", QUESTION),), "3*4=12\n12+12=24\n#### 24", "24")
    record = (await rewriter.rewrite(row)).record
    assert (record.status, record.error) == ("error", "no memory for math@1")
    assert (record.proposer, record.adapter) == ("expert", None)


class WatchedChat(ChatFormat):
    """Remembers the longest that it was asked to tokenise, in characters."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer())
        self.longest = 0

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        self._look(sum(len(message.content) for message in messages))
        return super().prompt_ids(messages)

    def completion_ids(self, text: str) -> list[int]:
        self._look(len(text))
        return super().completion_ids(text)

    def _look(self, characters: int) -> None:
        self.longest = max(self.longest, characters)


SHORT, LONG = "1 + 2 ?", "1 + 2 = 3 " * 100_000


@pytest.mark.parametrize(
    ("question", "expert", "answer"), [(LONG, "It is 3", None), (SHORT, LONG, None), (SHORT, "It is 3", LONG)]
)
async def test_what_no_context_could_hold_is_a_rows_error_before_it_is_tokenised(
    question: str, expert: str, answer: str | None
) -> None:
    chat = WatchedChat()
    rewriter = Rewriter(
        ScriptedEngine(chat, GOOD), chat, Gate(GateSettings()), (Step(proposer="hint"),), RewriteSettings()
    )
    record = (await rewriter.rewrite(Demonstration("a", (Message("user", question),), expert, answer))).record
    assert record.status == "error"
    assert chat.longest < 1000
    characters = len(question) + len(expert) + len(answer or "")
    assert record.error == (
        f"prompt and completion have {characters} characters; the context of scripted holds 4096 tokens of at most "
        f"{chat.longest_token} characters"
    )


async def test_what_no_context_could_hold_is_refused_before_the_gate_reads_it() -> None:
    chat = WatchedChat()
    rewriter = Rewriter(
        ScriptedEngine(chat, GOOD), chat, Gate(GateSettings()), (Step(proposer="hint"),), RewriteSettings()
    )
    record = (await rewriter.rewrite(Demonstration("a", (Message("user", SHORT),), LONG, None, "poem"))).record
    assert record.error is not None
    assert record.error.startswith("prompt and completion have 1000007 characters")


async def test_the_mismatch_of_what_no_context_could_hold_is_refused_before_it_is_tokenised() -> None:
    chat = WatchedChat()
    with pytest.raises(PromptTooLongError, match="prompt and completion have 1000007 characters"):
        await surprisal(ScriptedEngine(chat, GOOD), chat, (Message("user", SHORT),), LONG)
    assert chat.longest < 1000


async def test_while_a_long_text_is_tokenised_others_go_on() -> None:
    others = threading.Event()

    class Waiting(WatchedChat):
        def _look(self, characters: int) -> None:
            super()._look(characters)
            assert characters < 20_000 or others.wait(20)

    chat = Waiting()
    asyncio.get_running_loop().call_later(0.05, others.set)
    with pytest.raises(PromptTooLongError, match="tokens, and there is room for 4096"):
        await surprisal(ScriptedEngine(chat, GOOD), chat, (Message("user", SHORT),), LONG[:40_000])
    assert chat.longest == 40_000


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_candidate_that_would_outgrow_the_context_ends_with_it(choices: int) -> None:
    source = random.Random(0)

    class Endless(ScriptedEngine):
        async def generate(
            self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
        ) -> list[Completion]:
            count = min(sampling.max_tokens, self.info.max_length - len(prompt_ids))
            await super().generate(prompt_ids, sampling, n, adapter)
            drawn = [[source.randint(4, 20) for _ in range(count)] for _ in range(n)]
            return [Completion(ids, chat.text(ids), [-1.0] * count, "length") for ids in drawn]

    chat = ChatFormat(tiny_tokenizer())
    engine = Endless(chat, GOOD, max_length=150)
    step = Step(proposer="solve", samples=1, choices=choices)
    rewriter = Rewriter(engine, chat, Gate(GateSettings()), (step,), RewriteSettings(max_tokens=1000))
    record = (await rewriter.rewrite(Demonstration("a", (Message("user", SHORT),), "It is 3", "3"))).record
    assert (record.status, record.error) == ("fallback", None)
    assert engine.sampled[0][0].max_tokens < 150
