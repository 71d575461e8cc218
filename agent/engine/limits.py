"""What every engine refuses before a request reaches the model: prompts and scores that the context cannot hold."""

from __future__ import annotations

from collections.abc import Sequence

from agent.engine import EngineInfo
from agent.exceptions import PromptTooLongError


def room_for_new_tokens(info: EngineInfo, prompt_ids: Sequence[int]) -> int:
    """New tokens that fit after the prompt, at least 1. Raises PromptTooLongError."""
    room = info.max_length - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise PromptTooLongError(
            f"the prompt has {len(prompt_ids)} tokens; the context of {info.model} holds "
            f"{info.max_length} with at least one new token"
        )
    return room


def check_score(info: EngineInfo, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> None:
    """Raises PromptTooLongError when the two do not fit together, ValueError for an empty prompt."""
    total = len(prompt_ids) + len(completion_ids)
    if total > info.max_length:
        raise PromptTooLongError(
            f"prompt and completion have {total} tokens; the context of {info.model} holds {info.max_length}"
        )
    if not prompt_ids:
        raise ValueError("the first completion token needs at least one prompt token before it")
