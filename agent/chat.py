"""Turns and completions as token ids, in the base model's own chat format.

Prompt and completion are tokenised apart and concatenated as ids, so that what is sampled, what is
scored and what is trained on are the same tokens. Text that comes from data never becomes a control token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from agent.demonstrations import Message
from agent.exceptions import ChatError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Control tokens of other families too: a demonstration may target them, and a later model may know them.
_FOREIGN_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:/?s|(?:start|end)_of_turn|bos|eos|pad)>|\[/?INST\]|<</?SYS>>")

# Added tokens that control something though they are not marked special, as `<｜User｜>` of DeepSeek. Others are words
# and runs of blanks.
_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)


def completion_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Token ids without special tokens as text, spaces as they were drawn."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class ChatFormat:
    """The chat template and tokenizer of one model.

    Args:
        tokenizer: with a chat template that ends every assistant turn with the end-of-turn token.

    Raises:
        ModelError: the template is missing or does not close an assistant turn with a known token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template: use an instruct model, or add chat_template.jinja")
        self.tokenizer = tokenizer
        self.end_of_turn_id = self._find_end_of_turn()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the end of the turn, and the tokenizer's end of text."""
        end_of_text = self.tokenizer.eos_token_id
        return frozenset({self.end_of_turn_id} if end_of_text is None else {self.end_of_turn_id, end_of_text})

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: no text has fewer tokens than its characters divided by this.

        Vocabularies of bytes spell each byte as a character, and a text has no more characters than bytes.
        """
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches every token of this tokenizer that controls something, blanks around it left out."""
        added = {t.content.strip(): t.special for t in self.tokenizer.added_tokens_decoder.values()}
        control = {text for text, special in added.items() if text and (special or _controls(text, added))}
        longest_first = sorted(control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")

    def neutralise(self, text: str) -> str:
        """Break control tokens in `text` with a space after their first character, until none is left.

        A control token of one character becomes the space.
        """
        for pattern in (self._control, _FOREIGN_CONTROL):
            while pattern.search(text):
                text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}" if len(match[0]) > 1 else " ", text)
        return text

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The turns and the opening of the assistant's answer, control tokens spelled out. Raises ChatError."""
        return self._template_text(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the turns and the opening of the assistant's answer.

        Raises:
            ChatError: the template refuses the turns.
        """
        return self._template(messages, add_generation_prompt=True)

    def conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of whole turns as the template writes them, the assistant's last one included. Raises ChatError."""
        return self._template(messages, add_generation_prompt=False)

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of an assistant's answer, the end-of-turn token included."""
        ids = self.tokenizer.encode(self.neutralise(text), add_special_tokens=False)
        return [*ids, self.end_of_turn_id]

    def text(self, ids: Sequence[int]) -> str:
        """The text of a completion, without special tokens; see `completion_text`."""
        return completion_text(self.tokenizer, ids)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, for display; a part of a multi-byte character shows as the replacement character."""
        return [str(self.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]

    def _template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        text = self._template_text(messages, add_generation_prompt=add_generation_prompt)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _template_text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        turns = [{"role": m.role, "content": self.neutralise(m.content)} for m in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except TemplateError as error:
            raise ChatError(f"the model's chat template refuses these turns: {error}") from error

    def _find_end_of_turn(self) -> int:
        """The first special token that the template writes after an assistant's content."""
        turns = [Message("user", "a"), Message("assistant", "b")]
        opened = self._template(turns[:1], add_generation_prompt=True)
        closed = self._template(turns, add_generation_prompt=False)
        special = set(self.tokenizer.all_special_ids) | {
            i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special
        }
        tail = closed[len(opened) :] if closed[: len(opened)] == opened else closed[-3:]
        for token in tail:
            if token in special:
                return int(token)
        raise ModelError("the chat template does not close an assistant turn with a special token")


def _controls(text: str, added: Collection[str]) -> bool:
    """Whether an added token that is not marked special looks as control tokens do.

    Tags that come in pairs (`<think>` and `</think>`, `<tool_call>`, in Gemma's vocabulary HTML) mark up text within a
    turn: they are the expert's to write.
    """
    name = text[1:-1].removeprefix("/")
    return bool(_BRACKETED.fullmatch(text)) and not {f"<{name}>", f"</{name}>"} <= set(added)
