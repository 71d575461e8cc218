"""Rewrites per second: this engine against plain `model.generate`, on the same prompts in one run.

    python benchmarks/rewrite_throughput.py --data gsm8k/train.jsonl

Both draw `--samples` completions of the rewriting prompt of each of the first `--prompts` rows, with the same
temperature, nucleus and token limit. `model.generate` gets batches of `--batch` prompts, sorted by length, with
`num_return_sequences`. Prints one JSON line; the ratio is completions per second, ours over plain.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from agent.assembly import open_chat, open_engine
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.engine import Sampling
from agent.engine.loading import pick_device, pick_dtype
from agent.intake import read_rows
from agent.models import ModelFiles, resolve_model
from agent.prompts import proposal_prompt
from agent.settings import EngineSettings, ModelSettings

TEMPERATURE, TOP_P = 0.7, 0.95


def rewriting_prompts(chat: ChatFormat, path: Path, count: int) -> list[list[int]]:
    """Token ids of the rewriting prompt of the first readable rows."""
    rows = (row for row in read_rows(path) if isinstance(row, Demonstration))
    prompts = (proposal_prompt("rewrite", row, "math") for row in itertools.islice(rows, count))
    return [chat.prompt_ids(prompt) for prompt in prompts if prompt is not None]


async def run_engine(model: ModelFiles, prompts: list[list[int]], samples: int, max_tokens: int) -> dict[str, float]:
    """Seconds and new tokens with all prompts submitted at once."""
    engine = await open_engine(model, EngineSettings())
    sampling = Sampling(temperature=TEMPERATURE, top_p=TOP_P, max_tokens=max_tokens, seed=0)
    await engine.generate(prompts[0], Sampling(max_tokens=4), n=2)
    started = time.perf_counter()
    completions = await asyncio.gather(*(engine.generate(ids, sampling, samples) for ids in prompts))
    seconds = time.perf_counter() - started
    await engine.close()
    return {"seconds": seconds, "tokens": sum(len(c.ids) for group in completions for c in group)}


def run_plain(
    model: ModelFiles, chat: ChatFormat, prompts: list[list[int]], samples: int, max_tokens: int, batch: int
) -> dict[str, float]:
    """The same with `model.generate`, left-padded batches of prompts of similar length."""
    device = pick_device("auto")
    plain = AutoModelForCausalLM.from_pretrained(model.path, dtype=pick_dtype("auto", device)).to(device).eval()
    chat.tokenizer.padding_side = "left"
    ordered = sorted(prompts, key=len)
    tokens = 0
    started = time.perf_counter()
    for start in range(0, len(ordered), batch):
        inputs = chat.tokenizer.pad({"input_ids": ordered[start : start + batch]}, return_tensors="pt").to(device)
        output = plain.generate(
            **inputs,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=max_tokens,
            num_return_sequences=samples,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=chat.tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        stops = torch.isin(new, torch.tensor(sorted(chat.stop_ids), device=device)).int()
        lengths = torch.where(stops.any(1), stops.argmax(1) + 1, new.shape[1])
        tokens += int(lengths.sum())
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16, help="prompts in one call of model.generate")
    options = parser.parse_args()

    model = resolve_model(ModelSettings(name=options.model))
    chat = open_chat(model)
    prompts = rewriting_prompts(chat, options.data, options.prompts)
    ours = asyncio.run(run_engine(model, prompts, options.samples, options.max_tokens))
    plain = run_plain(model, chat, prompts, options.samples, options.max_tokens, options.batch)
    completions = len(prompts) * options.samples
    for result in (ours, plain):
        result["completions_per_s"] = completions / result["seconds"]
        result["tokens_per_s"] = result["tokens"] / result["seconds"]
    report = {
        "benchmark": "rewrite_throughput",
        "prompts": len(prompts),
        "samples": options.samples,
        "prompt_tokens": sum(map(len, prompts)),
        "batch": options.batch,
        "engine": ours,
        "generate": plain,
        "ratio": ours["completions_per_s"] / plain["completions_per_s"],
        "ratio_tokens": ours["tokens_per_s"] / plain["tokens_per_s"],
    }
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in report.items()}, default=float))


if __name__ == "__main__":
    main()
