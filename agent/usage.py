"""What rewriting costs, in tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one or more demonstrations cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    scored_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.scored_tokens + other.scored_tokens,
        )
