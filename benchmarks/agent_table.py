"""What rewriting agents make of the same unseen demonstrations: the base model alone, and each adapter.

    python benchmarks/agent_table.py --data held-out.jsonl --rows 200 --adapter adapters/gate_only/1 adapters/math/1

Every agent draws the same number of rewrites of every row with the same prompts, temperature and seeds; the figures
are those of the held-out evaluation of a training (`trainer.evaluation`). Rows that a training would leave out are left
out. Prints one JSON line an agent, as soon as it is measured; `of_untrained` is the pass rate over that of the base
model.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path

from agent.assembly import load_adapter, open_chat, open_engine
from agent.demonstrations import Demonstration
from agent.embeddings import Embedder
from agent.gate import Gate
from agent.intake import read_rows
from agent.models import resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewardSettings, RewriteSettings
from trainer.data import fits_in, unusable
from trainer.evaluation import evaluate
from trainer.rollout import RolloutWorker


async def measure(options: argparse.Namespace) -> None:
    files = resolve_model(ModelSettings(name=options.model))
    engine, chat = await open_engine(files, EngineSettings()), open_chat(files)
    gate, embedder = Gate(GateSettings()), Embedder(GateSettings().text_model)
    worker = RolloutWorker(engine, chat, gate, embedder, RewriteSettings(), RewardSettings())
    fits = fits_in(engine.info.max_length, chat, RewriteSettings())
    readable = (row for row in read_rows(options.data) if isinstance(row, Demonstration))
    usable = (row for row in readable if unusable(row, fits) is None)
    rows = list(itertools.islice(usable, options.rows))
    untrained = 0.0
    for folder in (None, *options.adapter):
        adapter = await load_adapter(engine, folder, files) if folder else None
        started = time.perf_counter()
        figures = await evaluate(
            worker, rows, embedder, samples=options.samples, temperature=options.temperature, adapter=adapter
        )
        if folder is None:
            untrained = figures["pass_rate"]
        report = {
            "benchmark": "agent_table",
            "agent": adapter or "untrained",
            "rows": len(rows),
            "samples": options.samples,
            "temperature": options.temperature,
            **{name: round(value, 4) for name, value in figures.items()},
            "of_untrained": round(figures["pass_rate"] / untrained, 2) if untrained else None,
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(json.dumps(report), flush=True)
    await gate.aclose()
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations that no agent was trained on")
    parser.add_argument("--adapter", type=Path, nargs="*", default=[], help="folders of published adapters")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.4)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
