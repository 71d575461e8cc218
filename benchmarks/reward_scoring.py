"""Seconds that base scores cost a reward: this package against one rewrite at a time, on the same groups, in one run.

    python benchmarks/reward_scoring.py --data gsm8k/train.jsonl --adapter examples/adapters/math/1

Draws `--samples` rewrites of each of `--groups` experts with the adapter and lets the gate check them. `ours` are the
seconds of the worker that trains: base scores of every different feasible rewrite and of the experts that they are
compared with, all at once, and the diversity and the reward as well. `one_at_a_time` runs the model on prompt and
completion of one text after another and takes `log_softmax` of all logits in float32, as common reward functions do:
`feasible` the same texts, each as often as it was drawn; `all` every rewrite, feasible or not, and every expert. One
JSON line; `ratio` is against `all`, `ratio_feasible` against `feasible`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from pathlib import Path

from report import print_report
from score_throughput import Pair, score_plainly
from transformers import AutoModelForCausalLM

from agent.assembly import load_adapter, open_chat, open_engine
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.embeddings import Embedder
from agent.engine.loading import pick_device, pick_dtype
from agent.gate import Gate
from agent.intake import read_rows
from agent.models import ModelFiles, resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewardSettings, RewriteSettings
from trainer.rollout import RolloutGroup, RolloutWorker


async def draw(
    files: ModelFiles, chat: ChatFormat, options: argparse.Namespace
) -> tuple[list[RolloutGroup], dict[str, float]]:
    """Rewarded groups, and the seconds of every stage of theirs."""
    engine, gate = await open_engine(files, EngineSettings()), Gate(GateSettings())
    embedder = Embedder(GateSettings().text_model)
    embedder.embed(["loaded before the clock runs"])
    worker = RolloutWorker(engine, chat, gate, embedder, RewriteSettings(), RewardSettings())
    readable = (row for row in read_rows(options.data) if isinstance(row, Demonstration))
    rows = list(itertools.islice(readable, options.groups))
    adapter = await load_adapter(engine, options.adapter, files)
    groups = await worker.groups(
        rows, samples=options.samples, temperature=options.temperature, adapter=adapter, draw="benchmark"
    )
    await gate.aclose()
    await engine.close()
    return groups, worker.seconds


def pairs_of(chat: ChatFormat, groups: list[RolloutGroup], *, feasible_alone: bool) -> list[Pair]:
    """What one-at-a-time scoring computes: a group's expert, and its rewrites as often as they were drawn."""
    pairs = []
    for group in groups:
        drawn = [rewrite.text for rewrite in group.rewrites if rewrite.feasible or not feasible_alone]
        if drawn:
            prompt = chat.prompt_ids(group.demonstration.prompt)
            pairs += [(prompt, chat.completion_ids(text)) for text in (group.demonstration.expert, *drawn)]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of a published adapter")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.6)
    options = parser.parse_args()

    files = resolve_model(ModelSettings(name=options.model))
    chat = open_chat(files)
    groups, seconds = asyncio.run(draw(files, chat, options))
    device = pick_device("auto")
    plain = AutoModelForCausalLM.from_pretrained(files.path, dtype=pick_dtype("auto", device)).to(device).eval()
    feasible = pairs_of(chat, groups, feasible_alone=True)
    feasible_s, _ = score_plainly(plain, feasible) if feasible else (0.0, [])
    all_s, _ = score_plainly(plain, pairs_of(chat, groups, feasible_alone=False))
    print_report(
        {
            "benchmark": "reward_scoring",
            "groups": len(groups),
            "rewrites": sum(len(group.rewrites) for group in groups),
            "feasible": sum(rewrite.feasible for group in groups for rewrite in group.rewrites),
            "ours": seconds["score"],
            "one_at_a_time": {"feasible": feasible_s, "all": all_s},
            "ratio_feasible": feasible_s / seconds["score"],
            "ratio": all_s / seconds["score"],
        }
    )


if __name__ == "__main__":
    main()
