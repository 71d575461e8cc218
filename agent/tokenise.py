"""Token ids for a process that has other things to do meanwhile: what cannot fit is refused unread, and what is long is
tokenised in a thread. A tokenizer takes about a second for a mebibyte, and would stop the event loop for as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent.chat import ChatFormat
from agent.demonstrations import Message
from agent.engine import EngineInfo
from agent.exceptions import PromptTooLongError

T = TypeVar("T")

_LONG = 1 << 14  # characters; fewer are tokenised faster than a thread is asked
_THREAD = ThreadPoolExecutor(1, "tokenise")  # one: long texts take neither every core nor much memory at a time


async def demonstration_ids(
    chat: ChatFormat, info: EngineInfo, prompt: Sequence[Message], completion: str
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its completion.

    Args:
        chat: the chat format of the engine's model.
        info: says how many tokens there is room for.
        prompt: the turns before the completion.
        completion: the assistant's answer.

    Raises:
        ChatError: the model's chat template refuses the turns.
        PromptTooLongError: see `require_room`.
    """
    texts = [*(message.content for message in prompt), completion]
    require_room(chat, info, texts)
    return await tokenised(lambda: (chat.prompt_ids(prompt), chat.completion_ids(completion)), texts)


def require_room(chat: ChatFormat, info: EngineInfo, texts: Sequence[str]) -> None:
    """Refuse what cannot fit the context, whatever its tokens are; what passes may still be too long for the engine.

    Raises:
        PromptTooLongError: there are more characters than in a full context of the longest tokens.
    """
    characters = sum(map(len, texts))
    if characters > info.max_length * chat.longest_token:
        raise PromptTooLongError(
            f"prompt and completion have {characters} characters; the context of {info.model} holds "
            f"{info.max_length} tokens of at most {chat.longest_token} characters"
        )


async def tokenised(work: Callable[[], T], texts: Sequence[str]) -> T:
    """The result of `work`, which tokenises these texts, without stopping the event loop."""
    if sum(map(len, texts)) < _LONG:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work)
