"""The words every module shares: a message, a demonstration, and the row that could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn. `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One expert example.

    Attributes:
        id: unique within its file; given by the row or derived from its number.
        prompt: the turns before the expert completion; never empty.
        expert: the expert completion, as the downstream trainer would see it.
        reference_answer: the short final answer, when the row states one.
        task: which gate applies (`math`, `choice`, `text`), None to let the gate choose.
        source: the input row, untouched.
        line: 1-based line or row number in the input.
    """

    id: str
    prompt: tuple[Message, ...]
    expert: str
    reference_answer: str | None = None
    task: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    line: int | None = None

    @property
    def question(self) -> str:
        """Content of the last user turn."""
        return next((m.content for m in reversed(self.prompt) if m.role == "user"), "")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read: becomes an output row with status `error`.

    Attributes:
        id: the row's own id where it could be read, else derived from its number.
        line: 1-based line or row number.
        field: offending field or None.
        message: what is wrong and what to do.
        source: the row when it parsed as a JSON object, else None.
        duplicate: nothing is wrong with it but that an earlier row has its id.
    """

    id: str
    line: int
    message: str
    field: str | None = None
    source: dict[str, Any] | None = None
    duplicate: bool = False
