"""Scoring tokens per second: this engine against one-at-a-time scoring with full logits, in one run.

    python benchmarks/score_throughput.py --data gsm8k/train.jsonl

Every row gives one group: its question, its expert completion, and `--candidates` more completions (the experts of
the rows after it, cut to words of varied length). The plain way, as common reward code has it, runs the model on
prompt and completion of each pair and takes `log_softmax` of all logits in float32. Prints one JSON line; the ratio
is completion tokens per second, ours over plain, and `worst_nats` the largest difference of a token's score.
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


def score_plainly(model: ModelFiles, pairs: list[Pair], dtype: torch.dtype) -> tuple[float, list[list[float]]]:
    """The same, one pair at a time."""
    device = pick_device("auto")
    plain = AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).to(device).eval()
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
    plain, plain_scores = score_plainly(model, pairs, pick_dtype(options.dtype, pick_device("auto")))
    tokens = sum(len(completion) for _, completion in pairs)
    differences = [abs(a - b) for x, y in zip(our_scores, plain_scores, strict=True) for a, b in zip(x, y, strict=True)]
    report = {
        "benchmark": "score_throughput",
        "pairs": len(pairs),
        "completion_tokens": tokens,
        "dtype": options.dtype,
        "engine_tokens_per_s": round(tokens / ours, 1),
        "plain_tokens_per_s": round(tokens / plain, 1),
        "ratio": round(plain / ours, 3),
        "worst_nats": round(max(differences), 4),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
