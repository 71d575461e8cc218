"""Memory and seconds of one pass of a GRPO update: activations kept, against activations computed anew.

    python benchmarks/update_memory.py

The tokens are made up: prompts of 900 that begin with 700 in common, as the rewriting prompts with their examples do,
and `--groups` groups of `--samples` rewrites of `--tokens` each. Each way runs in a process of its own, four times;
seconds are the median without the first, megabytes the most that the process ever had above what it had before. Prints
one JSON line; ratios are kept over anew.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
import torch
from peft import LoraConfig
from report import print_report

from agent.assembly import open_chat
from agent.engine.transformers_engine import TransformersEngine
from agent.models import resolve_model
from agent.settings import EngineSettings, ModelSettings
from trainer.packing import completion_logprobs
from trainer.policy import SharedPolicy

_PROMPT, _OPENING = 900, 700
_PASSES = 4


def measure(options: argparse.Namespace, anew: bool) -> dict[str, float]:
    """Seconds and megabytes of a pass."""
    files = resolve_model(ModelSettings(name=options.model))
    chat = open_chat(files)
    engine = TransformersEngine(files.name, files.path, chat.tokenizer, chat.stop_ids, EngineSettings())
    policy = SharedPolicy(engine, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy.hand_over()
    model = policy.model
    if anew:
        model.gradient_checkpointing_enable()

    source = torch.Generator().manual_seed(0)

    def made_up(*shape: int) -> torch.Tensor:
        return torch.randint(100, model.config.vocab_size, shape, generator=source)

    rests = made_up(options.groups, _PROMPT - _OPENING)
    prompts = torch.cat([made_up(_OPENING).expand(options.groups, -1), rests], 1).repeat_interleave(options.samples, 0)
    rewrites = made_up(len(prompts), options.tokens)
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        logprobs, _ = completion_logprobs(
            model, prompts, torch.ones_like(prompts), rewrites, torch.ones_like(rewrites), temperature=1.0
        )
        logprobs.mean().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - started)
        model.zero_grad()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(seconds[1:]), "megabytes": (most - before) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    found = {}
    for way in ("kept", "anew"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[way] = pool.submit(measure, options, way == "anew").result()
    print_report(
        {
            "benchmark": "update_memory",
            **{name: getattr(options, name) for name in ("groups", "samples", "tokens")},
            **found,
            "ratio": {name: found["kept"][name] / found["anew"][name] for name in ("seconds", "megabytes")},
        }
    )


if __name__ == "__main__":
    main()
