"""Scores under the base model: by the vLLM engine that draws the samples, or by a model of its own beside it.

    .venv-vllm/bin/python benchmarks/vllm_scoring.py --data gsm8k/train.jsonl --adapter examples/adapters/math

Both ways draw `--samples` completions of the rewriting prompt of each of the first `--prompts` rows with the adapter,
and score each under the base model as soon as its group is drawn, as a training does. `shared` has one vLLM engine do
both; `separate` has the transformers engine score, with weights of its own, on the same device. Each way runs in a
process of its own. Prints one JSON line; memory is what all its processes have for themselves when the work is done,
on a GPU also what is taken of the card; the ratios are shared over separate.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from report import print_report

from agent.assembly import load_adapter, open_chat, open_engine
from agent.demonstrations import Demonstration
from agent.engine import LocalEngine, Sampling
from agent.intake import read_rows
from agent.models import resolve_model
from agent.prompts import proposal_prompt
from agent.settings import EngineSettings, ModelSettings


@dataclass(frozen=True, slots=True)
class Work:
    """What both ways are asked to do: token ids of (rewriting prompt, the demonstration's own prompt) pairs."""

    model: str
    adapter: Path
    pairs: list[tuple[list[int], list[int]]]
    samples: int
    max_tokens: int


def read_work(options: argparse.Namespace) -> Work:
    """The first readable rows that the rewriting prompt suits."""
    chat = open_chat(resolve_model(ModelSettings(name=options.model)))
    readable = (row for row in read_rows(options.data) if isinstance(row, Demonstration))
    pairs = []
    for row in itertools.islice(readable, options.prompts):
        prompt = proposal_prompt("rewrite", row, "math")
        if prompt is not None:
            pairs.append((chat.prompt_ids(prompt), chat.prompt_ids(row.prompt)))
    return Work(options.model, options.adapter, pairs, options.samples, options.max_tokens)


async def measure(work: Work, *, separate: bool) -> dict[str, float]:
    """Seconds for everything, tokens scored, and GiB in use at the end."""
    model = resolve_model(ModelSettings(name=work.model))
    writer = await open_engine(model, EngineSettings(kind="vllm", max_length=2048))
    scorer = await open_engine(model, EngineSettings(max_length=2048)) if separate else writer
    adapter = await load_adapter(writer, work.adapter, model)
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=work.max_tokens)

    async def draw_and_score(writing: list[int], plain: list[int]) -> int:
        group = await writer.generate(writing, sampling, work.samples, adapter)
        scores = await asyncio.gather(*(scorer.score(plain, completion.ids) for completion in group))
        return sum(map(len, scores))

    await draw_and_score(*work.pairs[0])
    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*(draw_and_score(*pair) for pair in work.pairs)))
    seconds = time.perf_counter() - started
    memory = memory_in_use()
    await close(writer, scorer)
    return {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds, **memory}


def memory_in_use() -> dict[str, float]:
    """GiB that this process and its children have for themselves, and that are taken of the GPU."""
    here = psutil.Process()
    own = sum(process.memory_full_info().uss for process in (here, *here.children(recursive=True)))
    found = {"memory_gib": own / 2**30}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu_memory_gib"] = (total - free) / 2**30
    return found


async def close(*engines: LocalEngine) -> None:
    for engine in dict.fromkeys(engines):
        await engine.close()


def _run(work: Work, separate: bool) -> dict[str, float]:
    return asyncio.run(measure(work, separate=separate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter that draws")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=128)
    work = read_work(parser.parse_args())

    found = {}
    for name, separate in (("shared", False), ("separate", True)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[name] = pool.submit(_run, work, separate).result()
    shared, apart = found["shared"], found["separate"]
    report = {
        "benchmark": "vllm_scoring",
        "prompts": len(work.pairs),
        "samples": work.samples,
        **found,
        "ratios": {key: shared[key] / apart[key] for key in shared if key not in {"seconds", "tokens"}},
    }
    print_report(report)


if __name__ == "__main__":
    main()
