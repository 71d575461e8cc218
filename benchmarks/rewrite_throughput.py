"""Rewrites per second: this package against what is below it, on the same prompts in one run.

    python benchmarks/rewrite_throughput.py --data gsm8k/train.jsonl
    .venv-vllm/bin/python benchmarks/rewrite_throughput.py --data gsm8k/train.jsonl --engine vllm

All draw `--samples` completions of the rewriting prompt of each of the first `--prompts` rows, with the same
temperature, nucleus and token limit. The transformers engine is compared with plain `model.generate`, which gets
batches of `--batch` prompts, sorted by length, with `num_return_sequences`; the vLLM engine with vLLM's own
`LLM.generate` of the same engine arguments. With vLLM the whole service is measured too: it also checks every
rewrite, and scores the expert and what passes. Prints one JSON line; the ratios are completions per second, ours over
plain.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from report import print_report
from service_overhead import running_service
from transformers import AutoModelForCausalLM

from agent.assembly import open_chat, open_engine
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.engine import Sampling
from agent.engine.loading import pick_device, pick_dtype
from agent.engine.vllm_adapters import BaseWeights
from agent.engine.vllm_start import vllm_arguments, vllm_environment
from agent.intake import read_rows
from agent.models import resolve_model
from agent.prompts import proposal_prompt
from agent.settings import EngineSettings, ModelSettings
from cli.client import RewriteClient, rewrite_rows_remotely

TEMPERATURE, TOP_P = 0.7, 0.95
Result = dict[str, float]


@dataclass(frozen=True, slots=True)
class Work:
    """What everybody is asked to do."""

    model: str
    rows: list[Demonstration]
    engine: EngineSettings
    samples: int
    max_tokens: int
    batch: int

    def prompts(self, chat: ChatFormat) -> list[list[int]]:
        """Token ids of the rewriting prompts."""
        prompts = (proposal_prompt("rewrite", row, "math") for row in self.rows)
        return [chat.prompt_ids(prompt) for prompt in prompts if prompt is not None]


def run_engine(work: Work) -> Result:
    """Seconds and new tokens with all prompts submitted at once."""
    return asyncio.run(_run_engine(work))


async def _run_engine(work: Work) -> Result:
    model = resolve_model(ModelSettings(name=work.model))
    prompts = work.prompts(open_chat(model))
    engine = await open_engine(model, work.engine)
    sampling = Sampling(temperature=TEMPERATURE, top_p=TOP_P, max_tokens=work.max_tokens, seed=0)
    await engine.generate(prompts[0], Sampling(max_tokens=4), n=2)
    started = time.perf_counter()
    completions = await asyncio.gather(*(engine.generate(ids, sampling, work.samples) for ids in prompts))
    seconds = time.perf_counter() - started
    await engine.close()
    return {"seconds": seconds, "tokens": sum(len(c.ids) for group in completions for c in group)}


def run_plain(work: Work) -> Result:
    """The same with `model.generate`, left-padded batches of prompts of similar length."""
    model = resolve_model(ModelSettings(name=work.model))
    chat = open_chat(model)
    device = pick_device("auto")
    plain = AutoModelForCausalLM.from_pretrained(model.path, dtype=pick_dtype("auto", device)).to(device).eval()
    chat.tokenizer.padding_side = "left"
    ordered = sorted(work.prompts(chat), key=len)
    tokens = 0
    started = time.perf_counter()
    for start in range(0, len(ordered), work.batch):
        inputs = chat.tokenizer.pad({"input_ids": ordered[start : start + work.batch]}, return_tensors="pt").to(device)
        output = plain.generate(
            **inputs,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=work.max_tokens,
            num_return_sequences=work.samples,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=chat.tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        stops = torch.isin(new, torch.tensor(sorted(chat.stop_ids), device=device)).int()
        lengths = torch.where(stops.any(1), stops.argmax(1) + 1, new.shape[1])
        tokens += int(lengths.sum())
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def run_llm(work: Work) -> Result:
    """The same with `LLM.generate`."""
    model = resolve_model(ModelSettings(name=work.model))
    chat = open_chat(model)
    base = BaseWeights(model.path, work.engine.vllm.max_lora_rank)
    with vllm_environment(work.engine):
        from vllm import LLM, SamplingParams

        llm = LLM(**vllm_arguments(model.path, work.engine, base))
    prompts = [{"prompt_token_ids": ids} for ids in work.prompts(chat)]
    params = SamplingParams(
        n=work.samples,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        max_tokens=work.max_tokens,
        seed=0,
        stop_token_ids=sorted(chat.stop_ids),
        ignore_eos=True,
        detokenize=False,
    )
    llm.generate(prompts[:1], SamplingParams(n=2, max_tokens=4, detokenize=False), use_tqdm=False)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": sum(len(sample.token_ids) for output in outputs for sample in output.outputs)}


def run_service(work: Work) -> Result:
    """The same rows through `POST /v1/rewrites`; a candidate a sample, of one attempt."""
    settings = {"REWRIGHT_MODEL__NAME": work.model, "REWRIGHT_ENGINE__KIND": work.engine.kind}
    with running_service(settings | {"REWRIGHT_ENGINE__MAX_LENGTH": str(work.engine.max_length)}) as url:
        return asyncio.run(_run_service(work, url))


async def _run_service(work: Work, url: str) -> Result:
    sampling = {"temperature": TEMPERATURE, "samples": work.samples, "max_tokens": work.max_tokens}
    async with RewriteClient(url, None, {"strategy": "rewrite", "sampling": sampling}, patience_s=60) as client:
        seconds = 0.0
        for rows in (work.rows[:1], work.rows):
            started = time.perf_counter()
            async for _ in rewrite_rows_remotely(client, rows, model=work.model):
                pass
            seconds = time.perf_counter() - started
    return {"seconds": seconds}


def measured(run: Callable[[Work], Result], work: Work) -> Result:
    """What `run` finds, in a process of its own, with rates."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(run, work).result()
    result["completions_per_s"] = len(work.rows) * work.samples / result["seconds"]
    if "tokens" in result:
        result["tokens_per_s"] = result["tokens"] / result["seconds"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16, help="prompts in one call of model.generate")
    options = parser.parse_args()

    readable = (row for row in read_rows(options.data) if isinstance(row, Demonstration))
    rows = list(itertools.islice(readable, options.prompts))
    settings = EngineSettings(kind=options.engine, max_length=2048)
    work = Work(options.model, rows, settings, options.samples, options.max_tokens, options.batch)
    plain = measured(run_llm if options.engine == "vllm" else run_plain, work)
    ours = {"engine": measured(run_engine, work)}
    if options.engine == "vllm":
        ours["service"] = measured(run_service, work)
    report = {
        "benchmark": "rewrite_throughput",
        "against": options.engine,
        "prompts": len(rows),
        "samples": options.samples,
        "generate": plain,
        **ours,
        "ratios": {name: found["completions_per_s"] / plain["completions_per_s"] for name, found in ours.items()},
        "ratio_tokens": ours["engine"]["tokens_per_s"] / plain["tokens_per_s"],
    }
    print_report(report)


if __name__ == "__main__":
    main()
