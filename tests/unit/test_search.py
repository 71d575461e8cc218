"""Growing a candidate sentence by sentence; continuations are scripted, the gate is the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import agent.search as module
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.engine import Completion, Sampling
from agent.gate import Gate
from agent.rewriter import Rewriter
from agent.search import Grown, grow
from agent.settings import GateSettings, RewriteSettings, Step
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import CHATML

END = "\0"  # stands for the end of the turn
PROMPT, PLAIN = [7, 7, 7], [9]


class Talker(ScriptedEngine):
    """Goes on after each text as `script` says, one continuation a sample; `nats` are those of a token by its text."""

    def __init__(self, chat: ChatFormat, script: Mapping[str, Sequence[str]], nats: Mapping[str, float]) -> None:
        super().__init__(chat, "")
        self._chat, self._script, self._nats = chat, script, nats
        self.seeds: list[int | None] = []

    def ids(self, text: str) -> list[int]:
        tokens = self._chat.tokenizer.encode(text.removesuffix(END), add_special_tokens=False)
        return [*tokens, self._chat.end_of_turn_id] if text.endswith(END) else tokens

    def text(self, ids: Sequence[int]) -> str:
        return str(self._chat.tokenizer.decode(list(ids), skip_special_tokens=True))

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        assert adapter == "agent@1"
        self.seeds.append(sampling.seed)
        continuations = self._script[self.text(prompt_ids[len(PROMPT) :])]
        completions = []
        for number in range(n):
            ids = self.ids(continuations[number % len(continuations)])[: sampling.max_tokens]
            reason = "stop" if ids[-1] == self._chat.end_of_turn_id else "length"
            completions.append(Completion(ids, self.text(ids), [-0.5] * len(ids), reason))  # type: ignore[arg-type]
        return completions

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        assert adapter is None, "surprise is the base model's"
        assert prompt_ids[: len(PLAIN)] == PLAIN
        return [-self._nats.get(self.text(completion_ids).strip(), 1.0)] * len(completion_ids)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> ChatFormat:
    """A token is a byte, and a piece is longer than the sentences here."""
    monkeypatch.setattr(module, "PIECE", 80)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: place for place, text in enumerate(["<|im_start|>", "<|im_end|>", *letters])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[attr-defined, unused-ignore]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[attr-defined, unused-ignore]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.chat_template = CHATML
    return ChatFormat(fast)


async def grown(
    talker: Talker, *, choices: int = 2, max_tokens: int = 200, wrong: str = "no such text", seed: int | None = 0
) -> Grown:
    sampling = Sampling(temperature=0.7, max_tokens=max_tokens, seed=seed)
    chat = talker._chat
    return await grow(
        talker, chat, PROMPT, PLAIN, sampling, choices, lambda beginning: wrong not in beginning, "agent@1"
    )


async def test_of_each_sentence_the_least_surprising_is_chosen(chat: ChatFormat) -> None:
    script = {
        "": ["A hen. It sat.", "A cow. It ate."],
        "A cow.": [" It sat." + END, " It lay." + END],
    }
    talker = Talker(chat, script, {"A cow.": 0.2, "It lay.": 0.9, "It sat.": 0.1})
    found = await grown(talker)
    assert found.completion.text == "A cow. It sat."
    assert found.completion.finish_reason == "stop"
    assert found.completion.ids == talker.ids("A cow. It sat." + END)
    assert found.completion.logprobs == [-0.5] * len(found.completion.ids)


async def test_every_token_is_counted(chat: ChatFormat) -> None:
    script = {"": ["A hen. It", "A cow. It"], "A cow.": [" It sat." + END]}
    talker = Talker(chat, script, {"A cow.": 0.2})
    found = await grown(talker)
    first, rest = len(talker.ids("A cow.")), len(talker.ids(" It sat." + END))
    assert found.usage.prompt_tokens == len(PROMPT) + len(PROMPT) + first
    assert found.usage.completion_tokens == len(talker.ids("A hen. It")) + len(talker.ids("A cow. It")) + 2 * rest
    assert found.usage.scored_tokens == len(talker.ids("A hen.")) + first + rest, "equal continuations are scored once"


async def test_what_the_gate_could_never_pass_is_not_chosen(chat: ChatFormat) -> None:
    script = {"": ["1 + 1 = 3. So", "1 + 1 = 2. So"], "1 + 1 = 2.": [" Done." + END]}
    found = await grown(Talker(chat, script, {"1 + 1 = 3.": 0.0}), wrong="= 3")
    assert found.completion.text == "1 + 1 = 2. Done."


async def test_without_any_continuation_the_completion_is_not_finished(chat: ChatFormat) -> None:
    script = {"": ["Good. Bad"], "Good.": [" Bad." + END]}
    found = await grown(Talker(chat, script, {}), wrong="Bad.")
    assert (found.completion.text, found.completion.finish_reason) == ("Good.", "length")


async def test_a_sentence_is_not_said_twice(chat: ChatFormat) -> None:
    script = {"": ["Yes. Yes."], "Yes.": [" Yes. Yes.", " No." + END]}
    found = await grown(Talker(chat, script, {"Yes.": 0.0}))
    assert found.completion.text == "Yes. No."


@pytest.mark.parametrize("sentence", ["It is 3.5 m long.", "So: 7\n", "Is it so?", 'He said "no."', "She has $.5."])
async def test_a_sentence_ends_where_readers_see_its_end(chat: ChatFormat, sentence: str) -> None:
    gap = "" if sentence.endswith("\n") else " "
    script = {"": [f"{sentence}{gap}And more."], sentence: [f"{gap}End." + END]}
    found = await grown(Talker(chat, script, {}))
    assert found.completion.text == f"{sentence}{gap}End."


async def test_a_sentence_longer_than_a_piece_is_grown_in_pieces_unjudged(chat: ChatFormat) -> None:
    long = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2
    first = long[:80]
    talker = Talker(chat, {"": [long], first: [" z." + END]}, {})
    found = await grown(talker, wrong="a b c d e f g h", choices=1)
    assert found.completion.text == first, "the sentence is judged when it is whole, and refused"
    found = await grown(talker, choices=1)
    assert (found.completion.text, found.completion.finish_reason) == (f"{first} z.", "stop")


async def test_where_a_sentence_ends_a_piece_without_end_is_not_chosen(chat: ChatFormat) -> None:
    long = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2
    talker = Talker(chat, {"": [long, "Short." + END]}, {long[:80].strip(): 0.0})
    assert (await grown(talker)).completion.text == "Short."


async def test_the_limit_of_tokens_is_of_the_whole(chat: ChatFormat) -> None:
    talker = Talker(chat, {"": ["One. Two."], "One.": [" Two. Three."]}, {})
    found = await grown(talker, max_tokens=len("One. Tw"))
    assert (found.completion.text, found.completion.finish_reason) == ("One. Tw", "length")


async def test_every_sentence_is_drawn_with_a_seed_of_its_own_and_the_same_each_time(chat: ChatFormat) -> None:
    script = {"": ["One. Two."], "One.": [" Two." + END]}
    first, again, free = Talker(chat, script, {}), Talker(chat, script, {}), Talker(chat, script, {})
    await grown(first)
    await grown(again)
    await grown(free, seed=None)
    assert first.seeds == again.seeds
    assert len({*first.seeds}) == 2
    assert free.seeds == [None, None]


QUESTION = "Ann has 12 pears and buys 3 bags with 4 pears each. How many pears does she have?"
EXPERT = "3*4=12\n12+12=24\n#### 24"


class Reckoner(Talker):
    """Continues whatever prompt it is given; what it said before is the part after the prompt's last word."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        text = self.text(prompt_ids)
        said = max((said for said in self._script if text.endswith(said)), key=len)
        ids = [self.ids(continuation) for continuation in self._script[said]]
        return [Completion(i, self.text(i), [-0.5] * len(i), "stop" if said else "length") for i in ids[:n]]

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        return [-self._nats.get(self.text(completion_ids).strip(), 1.0)] * len(completion_ids)


async def test_a_false_step_in_one_sentence_does_not_cost_the_candidate(chat: ChatFormat) -> None:
    """Of two draws of the first sentence the less surprising one is false; drawn whole, it would spoil the text."""
    right = "Ann buys 3 * 4 = 12 pears."
    rest = " So she has 12 + 12 = 24 pears. The answer is 24."
    script = {
        "": ["Ann buys 3 * 4 = 14 pears. So", f"{right} So"],
        right: [" So she has 12 + 12 = 24 pears. The"],
        f"{right} So she has 12 + 12 = 24 pears.": [" The answer is 24." + END],
    }
    nats = {EXPERT: 3.0, "Ann buys 3 * 4 = 14 pears.": 0.1}
    gate = Gate(GateSettings())
    row = Demonstration("a", (Message("user", QUESTION),), EXPERT, "24")
    step = Step(proposer="rewrite", temperatures=(0.4,), samples=1, choices=2)
    found = await Rewriter(Reckoner(chat, script, nats), chat, gate, (step,), RewriteSettings()).rewrite(row)
    await gate.aclose()
    assert (found.record.status, found.record.target) == ("rewritten", f"{right}{rest}")
    assert found.usage.scored_tokens > 0


@pytest.mark.parametrize(
    ("beginning", "may"),
    [
        ("Ann buys 3 * 4 = 12 pears.", True),
        ("Ann buys 3 * 4 = 13 pears.", False),
        ("Ann buys 5 * 4 = 20 pears and 17 * 2 = 34 plums.", False),
        ("Ann will have 48 pears, which is worked out below.", False),
        ("To find out how many pears Ann has, we need to add.", True),
    ],
)
def test_the_gate_says_of_a_beginning_whether_it_may_pass(beginning: str, may: bool) -> None:
    row = Demonstration("a", (Message("user", QUESTION),), EXPERT, "24")
    assert Gate(GateSettings()).may_pass(row, beginning) is may
    assert Gate(GateSettings(arithmetic=False)).may_pass(row, beginning)
    talk = Demonstration("b", (Message("user", "Say hello to 3 pears."),), "Hello, 3 * 4 = 13 pears.", None)
    assert Gate(GateSettings()).may_pass(talk, beginning), "no task with equations"
