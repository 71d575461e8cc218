"""A candidate grown sentence by sentence: of several continuations, the one that surprises the base model least.

Whole candidates are chosen among once; sentences as often as there are sentences, which finds far less surprising texts
for the same number of draws (blockwise best-of-K, arXiv 2310.17022). And a continuation that the gate refuses already,
for a false sum or a number out of nowhere, is never chosen, so that one false step does not cost the whole. Works
through the engine's calls alone, with any engine. Not here: whether the result may be kept (`agent.rewriter`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from agent.chat import ChatFormat
from agent.engine import Completion, Engine, FinishReason, Sampling
from agent.usage import Usage

# Tokens that a sentence is looked for in; a longer one is grown in pieces of so many.
PIECE = 40

_ENDS = re.compile(r"[.!?。！？][\"'”’)\]]*$")


@dataclass(frozen=True, slots=True)
class Grown:
    """A completion, and what it cost.

    Attributes:
        completion: finished by `length` also where no continuation could be chosen.
        usage: each prompt holds what was chosen before; completions count those that were not chosen.
    """

    completion: Completion
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one draw goes on with: its tokens with their log-probabilities, its text without the space around it, and
    whether a sentence ends with it."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    is_whole: bool


async def grow(
    engine: Engine,
    chat: ChatFormat,
    prompt_ids: Sequence[int],
    plain_ids: Sequence[int],
    sampling: Sampling,
    choices: int,
    may_pass: Callable[[str], bool],
    adapter: str | None,
) -> Grown:
    """Grow one completion of `prompt_ids`.

    Args:
        engine: draws continuations, and scores them under the base model.
        chat: the chat format of its model.
        prompt_ids: the proposer's prompt; with `sampling.max_tokens` it fits the context.
        plain_ids: the demonstration's own prompt, under which continuations are scored.
        sampling: of every continuation; `max_tokens` is of the whole completion.
        choices: continuations drawn of each sentence.
        may_pass: whether a text that begins so may be gone on with.
        adapter: that draws, None for the base model.

    Raises:
        As `Engine.generate` and `Engine.score`.
    """
    ids: list[int] = []
    logprobs: list[float] = []
    said: set[str] = set()
    usage = Usage()
    finish_reason: FinishReason = "length"
    while (room := sampling.max_tokens - len(ids)) > 0:
        so_far = [*prompt_ids, *ids]
        part = replace(sampling.part(len(ids)), max_tokens=min(PIECE, room))
        completions = await engine.generate(so_far, part, choices, adapter)
        usage += Usage(len(so_far), sum(len(completion.ids) for completion in completions))
        pieces = list(_usable(chat, ids, completions, said, may_pass))
        if not pieces:
            break
        surprisals = await asyncio.gather(*(engine.score([*plain_ids, *ids], piece.ids) for piece in pieces))
        usage += Usage(scored_tokens=sum(map(len, surprisals)))
        _, chosen = min(
            zip((-sum(s) / len(s) for s in surprisals), pieces, strict=True), key=lambda pair: (pair[0], pair[1].ids)
        )
        ids += chosen.ids
        logprobs += chosen.logprobs
        said.add(chosen.text)
        if ids[-1] in chat.stop_ids:
            finish_reason = "stop"
            break
    return Grown(Completion(ids, chat.text(ids), logprobs, finish_reason), usage)


def _usable(
    chat: ChatFormat,
    ids: Sequence[int],
    completions: Sequence[Completion],
    said: set[str],
    may_pass: Callable[[str], bool],
) -> Iterator[_Piece]:
    """The different pieces to choose from: whole sentences where one was drawn, that say something new and may stand.

    What a piece without its sentence's end says is not judged: half an equation is not a false one.
    """
    distinct = {piece.ids: piece for piece in (_first(chat, completion) for completion in completions)}
    whole = [piece for piece in distinct.values() if piece.is_whole]
    for piece in whole or distinct.values():
        if piece.text not in said and (not piece.is_whole or may_pass(chat.text([*ids, *piece.ids]))):
            yield piece


def _first(chat: ChatFormat, completion: Completion) -> _Piece:
    """The first sentence of a completion, the end of the turn included where it comes next; else all of it."""
    texts = chat.token_texts(completion.ids)
    text = ""
    for count, token in enumerate(texts, 1):
        text += token
        if not any(letter.isalnum() for letter in text):
            continue
        follows = texts[count] if count < len(texts) else ""
        stops = count < len(texts) and completion.ids[count] in chat.stop_ids
        if stops:
            count += 1
        if stops or text.endswith("\n") or (_ENDS.search(text) and follows[:1].isspace()):
            return _piece(chat, completion, count, is_whole=True)
    return _piece(chat, completion, len(texts), is_whole=completion.finish_reason == "stop")


def _piece(chat: ChatFormat, completion: Completion, count: int, *, is_whole: bool) -> _Piece:
    ids = tuple(completion.ids[:count])
    return _Piece(ids, tuple(completion.logprobs[:count]), chat.text(ids).strip(), is_whole)
