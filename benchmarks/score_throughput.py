"""Scoring tokens per second: this engine against one-at-a-time scoring with full logits, in one run.

    python benchmarks/score_throughput.py --data gsm8k/train.jsonl

Every row gives one group: its question, its expert completion, and `--candidates` more completions (the experts of
the rows after it, cut to words of varied length). The plain way, as common reward code has it, runs the model on
prompt and completion of each pair and takes `log_softmax` of all logits in float32. Prints one JSON line:

- `ratio`: completion tokens per second, ours over plain; `worst_nats`: the largest difference of a token's score.
- `floor_ratio`: what counting allows, multiplications of the plain way over those that cannot be saved (every
  different prompt once, every completion token once, the vocabulary for completion tokens alone). A ratio above it
  is overhead that the plain way has and the engine has not.
- `matrix_share`: seconds that the products which cannot be saved take on this machine, alone and in large batches,
  over the engine's seconds. What is missing to 1 is attention, norms, soft-max and Python.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from agent.assembly import open_chat, open_engine
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.engine.loading import pick_device, pick_dtype
from agent.intake import read_rows
from agent.models import ModelFiles, resolve_model
from agent.settings import EngineSettings, ModelSettings

Pair = tuple[list[int], list[int]]


def pairs_of(chat: ChatFormat, path: Path, rows: int, candidates: int) -> list[Pair]:
    """Prompt and completion ids of every group, groups one after another."""
    read = (row for row in read_rows(path) if isinstance(row, Demonstration))
    demonstrations = list(itertools.islice(read, rows + candidates))
    pairs = []
    for index, row in enumerate(demonstrations[:rows]):
        prompt = chat.prompt_ids(row.prompt)
        texts = [row.expert] + [
            " ".join(other.expert.split()[: 30 + 10 * n])
            for n, other in enumerate(demonstrations[index + 1 : index + 1 + candidates])
        ]
        pairs += [(prompt, chat.completion_ids(text)) for text in texts]
    return pairs


async def score_with_engine(model: ModelFiles, pairs: list[Pair], dtype: str) -> tuple[float, list[list[float]]]:
    """Seconds, and the scores, with all pairs submitted at once."""
    engine = await open_engine(model, EngineSettings.model_validate({"dtype": dtype}))
    await engine.score(*pairs[0])
    started = time.perf_counter()
    scores = await asyncio.gather(*(engine.score(prompt, completion) for prompt, completion in pairs))
    seconds = time.perf_counter() - started
    await engine.close()
    return seconds, list(scores)


def score_plainly(plain: Any, pairs: list[Pair]) -> tuple[float, list[list[float]]]:
    """The same, one pair at a time."""
    device = plain.device
    scores = []
    with torch.inference_mode():
        plain(torch.tensor([pairs[0][0]], device=device))
        started = time.perf_counter()
        for prompt, completion in pairs:
            logits = plain(torch.tensor([prompt + completion], device=device)).logits
            logprobs = torch.log_softmax(logits.float(), dim=-1)[0, len(prompt) - 1 : -1]
            targets = torch.tensor(completion, device=device)[:, None]
            scores.append(logprobs.gather(1, targets)[:, 0].tolist())
    return time.perf_counter() - started, scores


@dataclass(frozen=True)
class Work:
    """Rows that go through the model's layers, and rows that go on to the vocabulary."""

    body: int
    head: int

    def products(self, plain: Any) -> int:
        """Multiplications of matrix products, attention left out."""
        head = plain.get_output_embeddings().weight.numel()
        return self.body * sum(weight.numel() for weight in body_weights(plain)) + self.head * head

    def seconds(self, plain: Any) -> float:
        """How long the matrix products alone take, from the best of three batches of 1,024 and 128 rows."""
        parts = [
            (self.body, 1024, body_weights(plain)),
            (self.head, 128, [plain.get_output_embeddings().weight]),
        ]
        return sum(
            rows / batch * min(timed_products(weights, batch) for _ in range(3)) for rows, batch, weights in parts
        )


def body_weights(plain: Any) -> list[torch.Tensor]:
    """The matrices of all layers."""
    return [module.weight for module in plain.get_decoder().modules() if isinstance(module, torch.nn.Linear)]


def timed_products(weights: list[torch.Tensor], rows: int) -> float:
    """Seconds to multiply so many rows with every matrix."""
    inputs = {weight.shape[1]: weight.new_ones(rows, weight.shape[1]) for weight in weights}
    with torch.inference_mode():
        started = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        if weights[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def work_of(pairs: list[Pair]) -> tuple[Work, Work]:
    """What cannot be saved, and what the plain way does."""
    prompts = {tuple(prompt) for prompt, _ in pairs}
    tokens = sum(len(completion) for _, completion in pairs)
    everything = sum(len(prompt) + len(completion) for prompt, completion in pairs)
    return Work(sum(map(len, prompts)) + tokens - len(pairs), tokens), Work(everything, everything)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, in any shape that rewright reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=7)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    options = parser.parse_args()

    model = resolve_model(ModelSettings(name=options.model))
    pairs = pairs_of(open_chat(model), options.data, options.rows, options.candidates)
    ours, our_scores = asyncio.run(score_with_engine(model, pairs, options.dtype))
    device = pick_device("auto")
    dtype = pick_dtype(options.dtype, device)
    peer = AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).to(device).eval()
    plain, plain_scores = score_plainly(peer, pairs)
    needed, done_plainly = work_of(pairs)
    tokens = sum(len(completion) for _, completion in pairs)
    differences = [abs(a - b) for x, y in zip(our_scores, plain_scores, strict=True) for a, b in zip(x, y, strict=True)]
    report = {
        "benchmark": "score_throughput",
        "pairs": len(pairs),
        "completion_tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "engine_tokens_per_s": round(tokens / ours, 1),
        "plain_tokens_per_s": round(tokens / plain, 1),
        "ratio": round(plain / ours, 3),
        "floor_ratio": round(done_plainly.products(peer) / needed.products(peer), 3),
        "matrix_share": round(needed.seconds(peer) / ours, 3),
        "worst_nats": round(max(differences), 4),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
