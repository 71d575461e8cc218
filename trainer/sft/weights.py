"""How much each completion token counts: what the frozen base model makes of it, and the weight that follows.

The base model is asked once, before the first update, and its answers are kept beside the data. So a weight never
depends on how far the training has come; EAFT as published (arXiv 2601.02151) asks the model in training instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.disk import replacing
from agent.engine.head import Head
from trainer.sft.data import SftRow
from trainer.sft.loss import CHUNK, completion_hidden, pack, surprisal, top_entropy
from trainer.sft.settings import IN_EXPERTS_WORDS, WeightSettings

# Tokens of one pass without gradients.
_PASS_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class BaseTokens:
    """What the base model makes of the completion of one row.

    Attributes:
        surprisal_T: -log p of each token, nats.
        entropy_T: normalised entropy of the distribution it was drawn from, 0 to 1; see `top_entropy`.
    """

    surprisal_T: Tensor
    entropy_T: Tensor


def token_weights(settings: WeightSettings, base: BaseTokens) -> Tensor:
    """Weight of each completion token, (T,), from 0 to 1.

    - `mask`: 0 where the token's perplexity is over the threshold, else 1 (Selective Token Masking, arXiv 2501.14315).
    - `entropy`: the normalised entropy: a token that the base model was sure it would not be counts little (EAFT).
    - `prob`: the probability of the token under the base model.

    The last token, which ends the turn, counts whole under every kind: after an expert's terse ending it mostly
    surprises the base model, and a model that is not taught it goes on talking.
    """
    if settings.kind == "mask":
        weights_T = (base.surprisal_T <= math.log(settings.mask_perplexity)).float()
    elif settings.kind == "entropy":
        weights_T = base.entropy_T.clone()
    elif settings.kind == "prob":
        weights_T = (-base.surprisal_T).exp()
    else:
        return torch.ones_like(base.surprisal_T)
    weights_T[-1] = 1.0
    return weights_T


def is_weighted(settings: WeightSettings, row: SftRow) -> bool:
    """Whether the tokens of this row are weighted at all."""
    return settings.kind != "none" and (settings.apply_to == "all" or row.status in IN_EXPERTS_WORDS)


def row_weights(settings: WeightSettings, rows: Sequence[SftRow], base: Iterable[BaseTokens]) -> list[Tensor]:
    """The weights of every row; ones for those that are not weighted.

    Args:
        settings: kind, scope and threshold.
        rows: all rows.
        base: of those that `is_weighted`, in order.
    """
    known = iter(base)
    return [
        token_weights(settings, next(known)) if is_weighted(settings, row) else torch.ones(len(row.completion_ids))
        for row in rows
    ]


def base_tokens(
    model: Any, rows: Sequence[SftRow], top_k: int | None, cache: Path, owner: Sequence[str]
) -> list[BaseTokens]:
    """Ask the base model about `rows`, or read from `cache` what it said before.

    Args:
        model: the base model; several processes share the work and all get all of it.
        rows: those that it is asked about.
        top_k: tokens that the entropy is taken of; None computes none.
        cache: folder for the answers.
        owner: what they depend on besides the rows: hash of the model's weights, its type.
    """
    content = [[row.prompt_ids, row.completion_ids] for row in rows]
    key = hashlib.sha256(json.dumps([*owner, top_k, content]).encode()).hexdigest()
    file = cache / f"base-tokens-{key[:16]}.safetensors"
    lengths = [len(row.completion_ids) for row in rows]
    if (known := _read(file, lengths)) is not None:
        return known
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    asked = list(ask(model, rows[rank::processes], top_k))
    if processes > 1:
        # As lists: a tensor that is part of another is sent with all of it.
        own = [(row.surprisal_T.tolist(), row.entropy_T.tolist()) for row in asked]
        shares: list[list[tuple[list[float], list[float]]]] = gather_object([own])
        spread = (shares[i % processes][i // processes] for i in range(len(rows)))
        asked = [BaseTokens(torch.tensor(surprisal), torch.tensor(entropy)) for surprisal, entropy in spread]
    if rank == 0:
        cache.mkdir(parents=True, exist_ok=True)
        _write(file, asked)
    return asked


def ask(model: Any, rows: Sequence[SftRow], top_k: int | None = None) -> Iterator[BaseTokens]:
    """What a model, the base or another, makes of each of `rows`, in order; without `top_k` the entropies are 0."""
    was_training = model.training
    model.eval()
    device, head = next(model.parameters()).device, Head(model)
    try:
        for group in _passes(rows, _PASS_TOKENS[device.type]):
            batch = pack(group, device)
            with torch.no_grad():
                hidden = torch.split(completion_hidden(model, batch), CHUNK)
                pieces = zip(hidden, torch.split(batch.targets_T, CHUNK), strict=True)
                said = [_said(head(states), targets, top_k) for states, targets in pieces]
            nats, entropy = (torch.cat(parts).cpu() for parts in zip(*said, strict=True))
            lengths = [len(row.completion_ids) for row in group]
            yield from map(BaseTokens, torch.split(nats, lengths), torch.split(entropy, lengths))
    finally:
        model.train(was_training)


def _said(logits: Tensor, targets: Tensor, top_k: int | None) -> tuple[Tensor, Tensor]:
    nats = surprisal(logits, targets)
    return nats, top_entropy(logits, top_k) if top_k else torch.zeros_like(nats)


def _passes(rows: Sequence[SftRow], tokens: int) -> Iterator[list[SftRow]]:
    """Neighbours that together have at most `tokens` tokens; a longer row is alone."""
    group: list[SftRow] = []
    for row in rows:
        if group and sum(other.tokens for other in group) + row.tokens > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _read(file: Path, lengths: list[int]) -> list[BaseTokens] | None:
    try:
        stored = load_file(file)
        parts = (torch.split(stored[name], lengths) for name in ("surprisal", "entropy"))
        return [BaseTokens(*tensors) for tensors in zip(*parts, strict=True)]
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, RuntimeError):
        return None  # of another version: ask again


def _write(file: Path, asked: Sequence[BaseTokens]) -> None:
    surprisal, entropy = (
        torch.cat([getattr(row, name) for row in asked]).contiguous() for name in ("surprisal_T", "entropy_T")
    )
    with replacing(file) as unfinished:
        save_file({"surprisal": surprisal, "entropy": entropy}, unfinished)
