"""How surprised the base model is by a target, given the plain question.

Scored are the completion tokens and the end-of-turn token, in the model's chat format; not the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agent.chat import ChatFormat
from agent.demonstrations import Message
from agent.engine import Engine
from agent.exceptions import MismatchError
from agent.records import Mismatch
from agent.tokenise import demonstration_ids, tokenised


@dataclass(frozen=True, slots=True)
class Surprisal:
    """Per-token surprisal of one target.

    Attributes:
        ids: scored token ids, the end-of-turn token last.
        tokens: the same as text.
        nats: -log p of each token under the base model.
    """

    ids: list[int]
    tokens: list[str]
    nats: list[float]

    def summary(self) -> Mismatch:
        """Mean, 95th percentile and count."""
        return summarise(self.nats)


async def surprisal(engine: Engine, chat: ChatFormat, prompt: Sequence[Message], completion: str) -> Surprisal:
    """Score `completion` as the answer to `prompt` under the base model.

    Raises:
        ChatError: the model's chat template refuses the turns.
        PromptTooLongError: the two do not fit the context.
        MismatchError: see `nats_of`.
    """
    prompt_ids, ids = await demonstration_ids(chat, engine.info, prompt, completion)
    nats = nats_of(await engine.score(prompt_ids, ids))
    tokens = await tokenised(lambda: chat.token_texts(ids), [completion])
    return Surprisal(ids, tokens, nats)


def nats_of(logprobs: Sequence[float]) -> list[float]:
    """Surprisal of tokens with these log-probabilities.

    Raises:
        MismatchError: one is not finite: no file of rows could hold it, and no other figure be compared with it.
    """
    nats = [-logprob for logprob in logprobs]
    for place, value in enumerate(nats, 1):
        if not math.isfinite(value):
            raise MismatchError(
                f"the base model's surprisal at token {place} of {len(nats)} is {value}, no finite number: "
                'try engine.dtype = "float32", and check the model\'s weights if other rows fail too'
            )
    return nats


def summarise(nats: Sequence[float]) -> Mismatch:
    """Mean and 95th percentile (linear interpolation) of per-token surprisal, nats; `nats` is not empty."""
    ordered = sorted(nats)
    place = 0.95 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    p95 = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    return Mismatch(nll=math.fsum(ordered) / len(ordered), p95=p95, tokens=len(ordered))
