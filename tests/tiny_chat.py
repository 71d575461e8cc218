"""A chat model of a few hundred weights whose tokens are whole words, so that positions can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent.engine.attention import ATTENTION_NAME, packed_attention

# The letter b is in it for `ChatFormat`, which looks for the token after it.
_SENTENCES = "What is 1 + 2 = 3 ? It is 4 5 6 7 8 9 Name a fruit Plum Be brief Hello Hi so then b"
WORDS = [*dict.fromkeys(_SENTENCES.split()), "system", "user", "assistant"]
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> \n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> \n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tiny_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """One token a word; what is not in `WORDS` is `<unk>`."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[attr-defined, unused-ignore]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


def tiny_model() -> LlamaForCausalLM:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).float()


def packed_model() -> LlamaForCausalLM:
    """Another one, of 97 tokens that are no words, which reads packed rows."""
    torch.manual_seed(0)
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        attn_implementation=ATTENTION_NAME,
    )
    return LlamaForCausalLM(config).float()


def write_tiny_model(folder: Path, template: str = CHATML) -> Path:
    """The model as a folder that `resolve_model` takes."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder)
    return folder
