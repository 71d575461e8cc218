"""Seconds of one GRPO step: this package against stock TRL, with the same model, groups, token limit and reward.

    python benchmarks/grpo_step.py --data gsm8k/train.jsonl

Both train a LoRA of the same shape on the rewriting prompts of the first `--groups` rows, `--samples` rewrites each.
Stock TRL generates with transformers and computes every completion with its own copy of the prompt; its reward
function calls the same gate and the same engine for scoring. A new adapter seldom passes the gate, and of a group whose
rewards are equal our update computes nothing: so in both every rewrite gets a bonus that only its place decides.
`no_signal` is the share of our groups that were skipped nevertheless, `truncated` that of rewrites cut off at the
limit. One JSON line; the ratio is stock over ours.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from report import print_report
from transformers import AutoModelForCausalLM, TrainerCallback

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl import GRPOTrainer

from agent.assembly import open_chat
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.embeddings import Embedder
from agent.engine import Completion
from agent.engine.loading import pick_device, pick_dtype
from agent.engine.transformers_engine import TransformersEngine
from agent.gate import Gate
from agent.intake import read_rows
from agent.models import ModelFiles, resolve_model
from agent.prompts import proposal_prompt
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewardSettings, RewriteSettings
from trainer.grpo import RewriteTrainer, grpo_config
from trainer.metrics import rollout_metrics
from trainer.rollout import Rewrite, RolloutGroup, RolloutWorker
from trainer.settings import LoraSettings, OptimizerSettings, TrainSettings

POLICY = "policy"


def with_bonus(rewards: list[float]) -> list[float]:
    """The rewards of a group, different from each other."""
    source = random.Random(0)
    return [reward + source.random() for reward in rewards]


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Wall-clock seconds of every optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def run_ours(
    rows: list[Demonstration],
    worker: RolloutWorker,
    engine: TransformersEngine,
    chat: ChatFormat,
    s: TrainSettings,
    limit: int,
) -> dict[str, float]:
    """Seconds of our steps, and of their parts, in the mean; and the shares of what an update need not compute."""
    clock = StepClock()
    parts: dict[str, list[float]] = {}
    drawn_groups: list[RolloutGroup] = []
    with asyncio.Runner() as runner:

        def collect(step: int, count: int) -> list[RolloutGroup]:
            drawn = worker.groups(
                rows[:count], samples=s.samples, temperature=s.temperature, adapter=POLICY, draw=str(step)
            )
            groups = runner.run(drawn)
            for name, seconds in worker.seconds.items():
                parts.setdefault(name, []).append(seconds)
            for group in groups:
                group.reward = replace(group.reward, reward=with_bonus(group.reward.reward))
            drawn_groups.extend(groups)
            engine.hand_over(POLICY)
            return groups

        with tempfile.TemporaryDirectory() as folder:
            trainer = RewriteTrainer(
                engine.add_trainable_adapter(POLICY, lora_config(s)),
                chat.tokenizer,
                s,
                Path(folder),
                collect=collect,
                state=dict,
                on_log=lambda *_: None,
                callbacks=[clock],
                stop_ids=chat.stop_ids,
                max_tokens=limit,
            )
            trainer.train()
    means = {name: sum(seconds) / len(seconds) for name, seconds in parts.items()}
    step = sum(clock.seconds) / len(clock.seconds)
    idle = {name: rollout_metrics(drawn_groups)[name] for name in ("no_signal", "truncated")}
    return {"step": step, **means, "update": step - sum(means.values()), **idle}


def run_stock(
    rows: list[Demonstration], worker: RolloutWorker, files: ModelFiles, chat: ChatFormat, s: TrainSettings, limit: int
) -> dict[str, float]:
    """Seconds of the steps of TRL's own trainer."""
    clock = StepClock()
    runner = asyncio.Runner()

    def reward(completions: list[Any], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        groups = []
        for start in range(0, len(row), s.samples):
            drawn = [
                Rewrite(
                    Completion(ids, str(message[0]["content"]), [], "stop" if ids[-1] in chat.stop_ids else "length")
                )
                for ids, message in zip(
                    completion_ids[start : start + s.samples], completions[start : start + s.samples], strict=True
                )
            ]
            groups.append(RolloutGroup(rows[row[start]], [], 0, drawn))
        runner.run(worker.reward(groups))
        return [value for group in groups for value in with_bonus(group.reward.reward)]

    prompts = []
    for demonstration in rows:
        prompt = proposal_prompt("rewrite", demonstration, "math")
        assert prompt is not None
        prompts.append([{"role": turn.role, "content": turn.content} for turn in prompt])
    with tempfile.TemporaryDirectory() as folder:
        config = grpo_config(s, Path(folder), s.groups, limit, use_cpu=pick_device("auto").type == "cpu")
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(files.path, dtype=pick_dtype("auto", pick_device("auto"))),
            reward_funcs=[reward],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts * s.steps, "row": [*range(len(rows))] * s.steps}),
            processing_class=chat.tokenizer,
            peft_config=lora_config(s),
            callbacks=[clock],
        )
        trainer.train()
    runner.close()
    return {"step": sum(clock.seconds) / len(clock.seconds)}


def lora_config(settings: TrainSettings) -> LoraConfig:
    targets = list(settings.lora.target_modules)
    return LoraConfig(
        r=settings.lora.rank, lora_alpha=settings.lora.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()

    settings = TrainSettings(
        steps=options.steps,
        groups=options.groups,
        samples=options.samples,
        lora=LoraSettings(rank=16, target_modules=("gate_proj", "up_proj", "down_proj")),
        # Both keep their activations, which is what stock TRL is fastest with.
        optimizer=OptimizerSettings(groups_per_pass=min(4, options.groups), gradient_checkpointing=False),
    )
    files = resolve_model(ModelSettings(name=options.model))
    chat = open_chat(files)
    readable = (row for row in read_rows(options.data) if isinstance(row, Demonstration))
    rows = list(itertools.islice(readable, options.groups))
    engine = TransformersEngine(files.name, files.path, chat.tokenizer, chat.stop_ids, EngineSettings())
    rewrite = RewriteSettings(max_tokens=options.max_tokens, top_p=1.0)
    embedder = Embedder(GateSettings().text_model)
    worker = RolloutWorker(engine, chat, Gate(GateSettings()), embedder, rewrite, RewardSettings())
    ours = run_ours(rows, worker, engine, chat, settings, options.max_tokens)
    stock = run_stock(rows, worker, files, chat, settings, options.max_tokens)
    report = {
        "benchmark": "grpo_step",
        "groups": options.groups,
        "samples": options.samples,
        "no_signal": ours.pop("no_signal"),
        "truncated": ours.pop("truncated"),
        "ours": ours,
        "trl": stock,
        "ratio": stock["step"] / ours["step"],
    }
    print_report(report)


if __name__ == "__main__":
    main()
