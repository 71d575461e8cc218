"""Control tokens of tokenizers of every kind, in text and at the end of a completion."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from agent.chat import ChatFormat
from tests.tiny_chat import CHATML


def chat_of(*, special: list[str] | None = None, added: list[str] | None = None) -> ChatFormat:
    """A token is a byte; `<|endoftext|>` has the id 0."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(special or [])]
    vocabulary = {text: place for place, text in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[attr-defined, unused-ignore]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[attr-defined, unused-ignore]
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added or []])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = CHATML
    return ChatFormat(fast)


def test_an_end_of_text_whose_id_is_0_ends_a_completion() -> None:
    assert chat_of().stop_ids == {0, 2}


@pytest.mark.parametrize(
    ("special", "text", "neutralised"),
    [("§", "see §5", "see  5"), ("§§", "a §§§ b", "a § § § b"), ("§ ", "see § 5", "see   5")],
)
def test_breaking_short_control_tokens_ends(special: str, text: str, neutralised: str) -> None:
    assert chat_of(special=[special]).neutralise(text) == neutralised


@pytest.mark.parametrize("token", ["<｜User｜>", "<mask>", "[multimodal]"])
def test_a_control_token_that_is_not_marked_special_is_broken_too(token: str) -> None:
    chat = chat_of(added=[token])
    added = chat.tokenizer.convert_tokens_to_ids(token)
    assert added in chat.tokenizer.encode(token)
    assert added not in chat.completion_ids(f"a {token} b")


@pytest.mark.parametrize("token", ["    ", "\n\n", "naïve", "<", "<>"])
def test_blanks_and_words_are_left_alone_though_they_are_added_tokens(token: str) -> None:
    text = f"x{token}y"
    assert chat_of(added=[token]).neutralise(text) == text


def test_blanks_are_left_alone_though_they_are_special() -> None:
    assert chat_of(special=["\n"]).neutralise("x\ny") == "x\ny"


@pytest.mark.parametrize("name", ["think", "tool_call", "table"])
def test_tags_that_come_in_pairs_are_the_experts_to_write(name: str) -> None:
    chat = chat_of(added=[f"<{name}>", f"</{name}>"])
    text = f"<{name}>1 + 1 = 2</{name}>"
    assert chat.neutralise(text) == text
    assert chat.tokenizer.convert_tokens_to_ids(f"<{name}>") in chat.completion_ids(text)
