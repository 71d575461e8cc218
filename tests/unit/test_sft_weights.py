"""Token weights against values worked out by hand, and what the base model said, kept and read again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from agent.engine.attention import ATTENTION_NAME, packed_attention
from tests.tiny_chat import tiny_model
from trainer.sft import weights as module
from trainer.sft.data import SftRow
from trainer.sft.loss import top_entropy
from trainer.sft.losses import mean_loss, read_losses, row_losses, write_losses
from trainer.sft.settings import WeightSettings
from trainer.sft.weights import BaseTokens, ask, base_tokens, is_weighted, row_weights, token_weights

# Probabilities 1, 1/2, 2/5, 1/10 and 1/20 under the base model; 2/5 has a perplexity of exactly 2.5, and the last token
# ends the turn.
BASE = BaseTokens(-torch.tensor([1.0, 0.5, 0.4, 0.1, 0.05]).log(), torch.tensor([0.0, 0.25, 1.0, 0.5, 0.1]))
ROWS = [
    SftRow("a", "rewritten", [2, 5], [6, 7, 3]),
    SftRow("b", "fallback", [2, 8, 9], [10, 3]),
    SftRow("c", "expert", [2, 9], [11, 12, 13, 3]),
]


def settings(kind: str, **further: Any) -> WeightSettings:
    return WeightSettings.model_validate({"kind": kind, **further})


def test_mask_drops_what_is_over_the_threshold() -> None:
    assert token_weights(settings("mask", mask_perplexity=2.6), BASE).tolist() == [1, 1, 1, 0, 1]
    assert token_weights(settings("mask", mask_perplexity=2.4), BASE).tolist() == [1, 1, 0, 0, 1]
    assert token_weights(settings("mask", mask_perplexity=11), BASE).tolist() == [1, 1, 1, 1, 1]


def test_prob_weighs_by_the_probability_of_the_frozen_base() -> None:
    assert token_weights(settings("prob"), BASE).tolist() == pytest.approx([1, 0.5, 0.4, 0.1, 1])


def test_entropy_weighs_by_the_normalised_entropy() -> None:
    assert token_weights(settings("entropy"), BASE).tolist() == [0, 0.25, 1, 0.5, 1]


def test_the_entropy_is_that_of_the_likeliest_tokens_over_its_largest_value() -> None:
    even = torch.zeros(6)
    half = torch.tensor([1.0, 1.0, -50.0, -50.0, -50.0, -50.0])
    odd = torch.tensor([math.log(3), 0.0, -50.0, -50.0, -50.0, -50.0])
    found = top_entropy(torch.stack([even, half, odd]), k=4, chunk=2).tolist()
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found == pytest.approx([1, math.log(2) / math.log(4), quarter / math.log(4)], abs=1e-6)


def test_the_entropy_leaves_the_tail_out() -> None:
    logits = torch.tensor([[5.0, 5.0, *([4.9] * 100)]])
    assert top_entropy(logits, k=2).tolist() == pytest.approx([1])


def test_the_token_that_ends_the_turn_counts_whole_and_what_the_base_model_said_of_it_is_kept() -> None:
    said = BASE.entropy_T.tolist()
    for kind in ("none", "mask", "entropy", "prob"):
        assert token_weights(settings(kind), BASE)[-1] == 1
    assert BASE.entropy_T.tolist() == said


def test_only_rows_in_the_experts_words_are_weighted_unless_all_are_to_be() -> None:
    fallback, every = settings("prob"), settings("prob", apply_to="all")
    assert [is_weighted(fallback, row) for row in ROWS] == [False, True, True]
    assert [is_weighted(every, row) for row in ROWS] == [True, True, True]
    assert [is_weighted(settings("none", apply_to="all"), row) for row in ROWS] == [False, False, False]
    said = [
        BaseTokens(torch.tensor(nats), torch.zeros(len(nats))) for nats in ([math.log(4), 9.0], [0.0, 0.0, 9.0, 9.0])
    ]
    assert [weights.tolist() for weights in row_weights(fallback, ROWS, said)] == [
        [1, 1, 1],
        pytest.approx([0.25, 1]),
        pytest.approx([1, 1, math.exp(-9), 1]),
    ]


@pytest.fixture
def model() -> Any:
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    model = tiny_model()
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def plain_logprobs(model: Any, row: SftRow) -> torch.Tensor:
    """(T, V), of the row alone and with the attention of transformers."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
    model.set_attn_implementation(ATTENTION_NAME)
    return logits.log_softmax(-1)


def test_the_base_model_says_of_packed_rows_what_it_says_of_each_alone(model: Any, tmp_path: Path) -> None:
    said = base_tokens(model, ROWS, 10**6, tmp_path, ["weights", "float32"])
    for row, own in zip(ROWS, said, strict=True):
        logprobs = plain_logprobs(model, row)
        nats = -logprobs.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
        assert own.surprisal_T.tolist() == pytest.approx(nats.tolist(), rel=1e-4)
        entropy = -(logprobs.exp() * logprobs).sum(-1) / math.log(logprobs.shape[-1])
        assert own.entropy_T.tolist() == pytest.approx(entropy.tolist(), rel=1e-4)
    nats = torch.cat([own.surprisal_T for own in said])
    losses = row_losses(ROWS, ask(model, ROWS))
    assert [(loss.row, loss.tokens) for loss in losses] == [(row.id, len(row.completion_ids)) for row in ROWS]
    assert losses[0].nats == pytest.approx(said[0].surprisal_T.sum().item(), rel=1e-5)
    assert mean_loss(losses) == pytest.approx(nats.mean().item(), rel=1e-5)
    write_losses(tmp_path / "losses.jsonl", losses)
    assert read_losses(tmp_path / "losses.jsonl") == losses


def test_few_tokens_have_logits_at_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(ask(model, ROWS, 10))
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, logits: rows.append(logits.shape[-2]))
    monkeypatch.setattr(module, "CHUNK", 4)
    pieces = list(ask(model, ROWS, 10))
    assert rows == [4, 4, 1]
    for one, other in zip(pieces, whole, strict=True):
        assert one.surprisal_T.tolist() == pytest.approx(other.surprisal_T.tolist(), rel=1e-5)
        assert one.entropy_T.tolist() == pytest.approx(other.entropy_T.tolist(), rel=1e-5)


def test_it_is_asked_once_and_again_only_for_other_rows_or_weights(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    original = module.completion_hidden

    def counted(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return original(*arguments)

    monkeypatch.setattr(module, "completion_hidden", counted)
    first = base_tokens(model, ROWS, 20, tmp_path, ["weights"])
    again = base_tokens(model, ROWS, 20, tmp_path, ["weights"])
    assert asked == 1
    assert [row.surprisal_T.tolist() for row in again] == [row.surprisal_T.tolist() for row in first]
    base_tokens(model, ROWS, 20, tmp_path, ["other weights"])
    base_tokens(model, ROWS[:2], 20, tmp_path, ["weights"])
    assert asked == 3


def test_a_broken_file_of_answers_is_replaced(model: Any, tmp_path: Path) -> None:
    first = base_tokens(model, ROWS, 20, tmp_path, ["weights"])
    (file,) = tmp_path.glob("base-tokens-*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = base_tokens(model, ROWS, 20, tmp_path, ["weights"])
    assert [row.surprisal_T.tolist() for row in again] == [row.surprisal_T.tolist() for row in first]
    assert file.read_bytes() == whole
