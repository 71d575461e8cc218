"""How a demonstration goes through a strategy: candidates are scripted, chat format and gate are the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from agent.assembly import open_chat
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.engine import Completion, EngineInfo, Sampling
from agent.exceptions import EngineClosedError, PromptTooLongError
from agent.gate import Gate
from agent.models import ModelFiles
from agent.rewriter import Rewriter
from agent.settings import GateSettings, RewriteSettings, Step
from agent.strategies import find_strategy
from tests.scripted_engine import QuietEngine

QUESTION = "Ann has 12 pears and buys 3 bags with 4 pears each. How many pears does she have?"
EXPERT = "3*4=12\n12+12=24\n#### 24"
GOOD = "Ann buys 3 * 4 = 12 pears. So she has 12 + 12 = 24 pears. The answer is \\boxed{24}."
BETTER = "She buys 3 * 4 = 12 pears, and 12 + 12 = 24 pears are hers now. The answer is \\boxed{24}."
WRONG = "She buys 3 * 4 = 12 pears. So she has 12 - 12 = 0 pears. The answer is \\boxed{0}."
PARROT = "It is well known how many pears Ann has got in the end, and so the answer is \\boxed{24}."
DEMONSTRATION = Demonstration("a", (Message("user", QUESTION),), EXPERT, "24")


class TableEngine(QuietEngine):
    """Answers `generate` with the next list of texts, and `score` by a table of nats per token (default 1)."""

    info = EngineInfo("scripted", 4096)

    def __init__(self, chat: ChatFormat, answers: list[list[str] | Exception], nats: dict[str, float]) -> None:
        self._chat, self._answers = chat, answers
        self._nats = {tuple(chat.completion_ids(text)): value for text, value in nats.items()}
        self.asked: list[tuple[Sequence[int], Sampling, int, str | None]] = []
        self.scored_after: list[Sequence[int]] = []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        self.asked.append((prompt_ids, sampling, n, adapter))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [Completion([*range(9)], text, [0.0] * 9, "stop") for text in answer]

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        self.scored_after.append(prompt_ids)
        return [-self._nats.get(tuple(completion_ids), 1.0)] * len(completion_ids)


@pytest.fixture(scope="module")
def chat(model_files: ModelFiles) -> ChatFormat:
    return open_chat(model_files)


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    opened = Gate(GateSettings())
    yield opened
    await opened.aclose()


def steps(*proposers: str, temperatures: tuple[float, ...] = (0.4,)) -> tuple[Step, ...]:
    return tuple(Step.model_validate({"proposer": p, "temperatures": temperatures, "samples": 2}) for p in proposers)


async def run(
    chat: ChatFormat,
    gate: Gate,
    strategy: tuple[Step, ...],
    answers: list[list[str] | Exception],
    nats: dict[str, float] | None = None,
    demonstration: Demonstration = DEMONSTRATION,
) -> tuple[dict[str, object], TableEngine]:
    engine = TableEngine(chat, answers, {EXPERT: 2.0, **(nats or {})})
    rewriter = Rewriter(engine, chat, gate, strategy, RewriteSettings(), adapter="math@1")
    return (await rewriter.rewrite(demonstration)).record.as_dict(), engine


async def test_the_feasible_candidate_nearest_to_the_base_model_is_kept(chat: ChatFormat, gate: Gate):
    row, _ = await run(chat, gate, steps("rewrite"), [[GOOD, WRONG, BETTER]], {GOOD: 0.9, BETTER: 0.5})
    assert (row["status"], row["proposer"], row["adapter"]) == ("rewritten", "rewrite", "math@1")
    assert row["completion"] == [{"role": "assistant", "content": BETTER}]
    assert row["mismatch"]["target"]["nll"] == pytest.approx(0.5)  # type: ignore[index]
    assert row["mismatch"]["expert"]["nll"] == pytest.approx(2.0)  # type: ignore[index]


async def test_a_later_step_is_tried_when_the_first_finds_nothing(chat: ChatFormat, gate: Gate):
    row, engine = await run(chat, gate, steps("solve", "hint", "rewrite"), [[WRONG], [PARROT], [GOOD]])
    assert (row["status"], row["proposer"], row["attempts"]) == ("rewritten", "rewrite", 3)
    assert [adapter for *_, adapter in engine.asked] == [None, None, "math@1"]


async def test_the_base_models_own_solution_is_self_solved(chat: ChatFormat, gate: Gate):
    row, _ = await run(chat, gate, steps("solve", "rewrite"), [[GOOD]])
    assert (row["status"], row["proposer"], row["adapter"]) == ("self_solved", "solve", None)


async def test_attempts_climb_the_temperatures_with_seeds_of_their_own(chat: ChatFormat, gate: Gate):
    _, engine = await run(chat, gate, steps("rewrite", temperatures=(0.2, 0.9)), [[WRONG], [GOOD]])
    assert [sampling.temperature for _, sampling, *_ in engine.asked] == [0.2, 0.9]
    assert len({sampling.seed for _, sampling, *_ in engine.asked}) == 2


async def test_without_a_feasible_candidate_the_expert_is_kept_with_the_reason(chat: ChatFormat, gate: Gate):
    row, _ = await run(chat, gate, steps("rewrite"), [[WRONG, WRONG]])
    assert (row["status"], row["proposer"], row["adapter"]) == ("fallback", "expert", None)
    assert row["completion"] == [{"role": "assistant", "content": EXPERT}]
    assert row["gate"]["passed"] is False  # type: ignore[index]
    assert row["gate"]["checks"][-1]["name"] == "math_answer"  # type: ignore[index]
    assert row["mismatch"]["target"] == row["mismatch"]["expert"]  # type: ignore[index]


async def test_an_answer_without_the_sums_that_lead_to_it_is_refused(chat: ChatFormat, gate: Gate):
    row, _ = await run(chat, gate, steps("hint"), [[PARROT]])
    assert row["status"] == "fallback"
    assert row["gate"]["checks"][-1]["name"] == "arithmetic"  # type: ignore[index]


async def test_a_rewrite_more_surprising_than_the_expert_is_refused(chat: ChatFormat, gate: Gate):
    row, _ = await run(chat, gate, steps("rewrite"), [[GOOD]], {GOOD: 2.5})
    assert row["status"] == "fallback"
    assert row["gate"]["checks"][-1] == {  # type: ignore[index]
        "name": "mismatch",
        "passed": False,
        "detail": "2.500 >= 2.000 nats per token",
    }


async def test_targets_are_scored_after_the_plain_question(chat: ChatFormat, gate: Gate):
    _, engine = await run(chat, gate, steps("rewrite"), [[GOOD]])
    assert engine.scored_after == [chat.prompt_ids(DEMONSTRATION.prompt)] * 2
    assert engine.asked[0][0] != engine.scored_after[0]


async def test_the_hint_is_left_out_where_no_answer_is_known(chat: ChatFormat, gate: Gate):
    unanswered = Demonstration("b", (Message("user", QUESTION),), "3*4=12, 12+12=24. The answer is \\boxed{24}.")
    row, engine = await run(chat, gate, steps("hint", "rewrite"), [[GOOD]], {GOOD: 0.5}, unanswered)
    assert (row["proposer"], len(engine.asked)) == ("rewrite", 1)


async def test_a_row_that_is_too_long_becomes_an_error_that_keeps_the_expert(chat: ChatFormat, gate: Gate):
    row, _ = await run(chat, gate, steps("rewrite"), [PromptTooLongError("the prompt has 9000 tokens")])
    assert (row["status"], row["completion"]) == ("error", [{"role": "assistant", "content": EXPERT}])
    assert row["error"]["message"] == "the prompt has 9000 tokens"  # type: ignore[index]


async def test_a_dead_engine_is_no_rows_fault(chat: ChatFormat, gate: Gate):
    with pytest.raises(EngineClosedError):
        await run(chat, gate, steps("rewrite"), [EngineClosedError("closed")])


def test_the_users_own_strategy_goes_before_a_named_one():
    own = steps("solve")
    assert find_strategy("default", RewriteSettings(strategies={"default": own})) == own
