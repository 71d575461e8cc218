"""Real steps of the GRPO trainer on groups that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel

from tests.tiny_chat import tiny_tokenizer
from trainer.grpo import RewriteTrainer
from trainer.rollout import RolloutGroup
from trainer.settings import TrainSettings

END = 3  # ends a turn
MAX_TOKENS = 8

T = TypeVar("T", bound=RewriteTrainer)


def train_on(
    kind: type[T],
    groups: Sequence[RolloutGroup],
    policy: PeftModel,
    settings: TrainSettings,
    folder: Path,
    *,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, logs: None,
    **further: Any,
) -> T:
    """A trainer that has trained `policy`, on the same groups in every step; `further` arguments are its own."""
    trainer = kind(
        policy,
        tiny_tokenizer(),
        settings,
        folder,
        collect=lambda step, count: groups,
        state=dict,
        on_log=on_log,
        callbacks=[],
        stop_ids=frozenset({END}),
        max_tokens=MAX_TOKENS,
        **further,
    )
    trainer.train()
    return trainer
