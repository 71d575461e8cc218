"""Warm start of the rewriting agent: it imitates given rewrites before the reinforcement learning begins.

A small base model seldom writes a rewrite that passes the gate, and groups in which none passes teach nothing. A few
updates on rewrites by a person, or kept ones of an earlier run, get it to the point where rewards differ. The prompts
are those of roll-outs and serving; the loss is the mean surprisal of the rewrites' tokens. Not here: the reward, and
what follows (`trainer.grpo`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.disk import commit, sync_tree
from agent.exceptions import ChatError, GateError
from agent.gate import Gate, task_of
from agent.intake import read_rows
from agent.rewriter import proposal_ids
from trainer.data import Asked, asked
from trainer.exceptions import TrainingDataError
from trainer.packing import completion_logprobs
from trainer.settings import TrainSettings, WarmStartSettings

# Rows in one forward and backward pass; bounds memory.
_ROWS_A_PASS = 8


@dataclass(frozen=True, slots=True)
class Imitated:
    """One rewrite to imitate: token ids of the agent's prompt, and of the rewrite with its end-of-turn token."""

    prompt_ids: list[int]
    completion_ids: list[int]


def require_candidates(file: Path) -> None:
    """Refuse a file without any rewrite to imitate; whether one passes, only the gate can tell.

    Raises:
        InputFileError: the file cannot be read.
        TrainingDataError: no row has a `candidate`.
    """
    rows = [row for row in read_rows(file) if isinstance(row, Demonstration)]
    if not any(_candidate(row) for row in rows):
        raise TrainingDataError(
            f"train.warm_start.file {file}: none of its {len(rows)} readable rows has a `candidate`; put the rewrite "
            "to imitate there, beside the demonstration"
        )


async def read_warm_start(
    file: Path, gate: Gate, chat: ChatFormat, *, context: int, held_out: AbstractSet[Asked]
) -> list[Imitated]:
    """The rows of `file` whose `candidate` passes the gate, fits chat format and context and asks nothing held out.

    Args:
        file: demonstrations with a `candidate` beside them, in any shape that intake reads.
        gate: the gate of the training.
        chat: format of the base model.
        context: tokens of prompt and rewrite together at most.
        held_out: questions that must not be trained on.

    Raises:
        InputFileError: the file cannot be read.
        TrainingDataError: no row is left.
    """
    rows = [row for row in read_rows(file) if isinstance(row, Demonstration) and asked(row) not in held_out]
    passed = await asyncio.gather(*(_passes(gate, row) for row in rows))
    imitated = []
    for row in (row for row, passes in zip(rows, passed, strict=True) if passes):
        completion_ids = chat.completion_ids(_candidate(row))
        room = context - len(completion_ids)
        try:
            prompt_ids = proposal_ids(chat, "rewrite", row, task_of(row), room)
        except ChatError:
            continue
        if prompt_ids is not None and len(prompt_ids) <= room:
            imitated.append(Imitated(prompt_ids, completion_ids))
    if not imitated:
        raise TrainingDataError(
            f"{file}: none of its {len(rows)} rows can be imitated: each needs a `candidate` that passes the gate, "
            "see `rewright check`"
        )
    return imitated


def _candidate(row: Demonstration) -> str:
    """The rewrite to imitate; empty where there is none."""
    candidate = row.source.get("candidate")
    return candidate.strip() if isinstance(candidate, str) else ""


async def _passes(gate: Gate, row: Demonstration) -> bool:
    candidate = _candidate(row)
    try:
        return bool(candidate) and (await gate.check(row, candidate)).passed
    except GateError:
        return False


def warm_start(
    model: PeftModel,
    rows: Sequence[Imitated],
    train: TrainSettings,
    folder: Path,
    base: str,
    *,
    is_main: bool,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Fit the adapter of `model` to `rows`, or take what an interrupted training has fitted to the same before.

    Every process of a training does the same work and comes to the same weights.

    Args:
        model: the base model with the adapter to train active.
        rows: what is imitated.
        train: settings of the training.
        folder: of the training; the fitted adapter is kept there.
        base: SHA-256 of the base model's weights.
        is_main: whether this process writes it.
        on_step: see `imitate`.

    Raises:
        OSError: it cannot be written.
    """
    content = [[row.prompt_ids, row.completion_ids] for row in rows]
    settings = [train.warm_start.model_dump(mode="json", exclude={"file"}), train.lora.model_dump(mode="json")]
    owner = [base, str(model.dtype), train.optimizer.max_grad_norm, train.seed]
    digest = hashlib.sha256(json.dumps([content, *settings, owner]).encode())
    kept = folder / f"warm-start-{digest.hexdigest()[:12]}"
    if kept.is_dir():
        set_peft_model_state_dict(model, load_peft_weights(str(kept), device=str(model.device)))
        return
    imitate(
        model, rows, train.warm_start, max_grad_norm=train.optimizer.max_grad_norm, seed=train.seed, on_step=on_step
    )
    if is_main:
        unfinished = folder / f".{kept.name}-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(str(unfinished))
        sync_tree(unfinished)
        commit(unfinished, kept)


def imitate(
    model: Any,
    rows: Sequence[Imitated],
    settings: WarmStartSettings,
    *,
    max_grad_norm: float,
    seed: int,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Fit the trainable parameters of `model` to `rows` with AdamW at a rate that falls to zero, in place.

    Args:
        model: the base model with the adapter to train active.
        rows: what is imitated.
        settings: epochs, rows an update, and the first learning rate.
        max_grad_norm: gradients are clipped to it.
        seed: of the order of the rows.
        on_step: called with updates done and planned, and the loss before the update, nats per token.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    batches = [batch for epoch in range(settings.epochs) for batch in _batches(rows, settings.rows, f"{seed}/{epoch}")]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / len(batches))
        loss = _accumulate(model, batch)
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step + 1, len(batches), loss)


def _batches(rows: Sequence[Imitated], size: int, seed: str) -> list[list[Imitated]]:
    """All rows in random order, `size` at a time."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]


def _accumulate(model: Any, batch: Sequence[Imitated]) -> float:
    """Add the gradients of the mean surprisal of the batch's completion tokens; returns that mean."""
    device = next(model.parameters()).device
    tokens = sum(len(row.completion_ids) for row in batch)
    total = 0.0
    for start in range(0, len(batch), _ROWS_A_PASS):
        part = batch[start : start + _ROWS_A_PASS]
        prompts = _padded([row.prompt_ids for row in part], device, side="left")
        completions = _padded([row.completion_ids for row in part], device, side="right")
        logprobs, _ = completion_logprobs(model, *prompts, *completions, temperature=1.0)
        loss = -logprobs.sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def _padded(sequences: Sequence[list[int]], device: torch.device, *, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (rows, longest)."""
    ids = [torch.tensor(sequence, device=device) for sequence in sequences]
    mask = [torch.ones_like(sequence) for sequence in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_side=side),
        pad_sequence(mask, batch_first=True, padding_side=side),
    )
