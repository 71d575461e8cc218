"""Measures the threshold of the gate's `text` check on labelled pairs of our own.

    python benchmarks/gate_text_threshold.py [--pairs FILE] [--model MODEL]

`kind` says how a pair's candidate came about: `paraphrase` (to accept), `mistaken` (a wrong answer in other words),
`related` (an answer to a question nearby), `unrelated`, and `altered` (the expert's words with the meaning turned).
Similarity cannot tell `altered` from `paraphrase`, so the threshold is the lowest that accepts at most 2 % of the
other wrong answers, and what it makes of `altered` is printed beside it. One JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from agent.embeddings import Embedder
from agent.gate.calibration import calibration
from agent.settings import GateSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=Path(__file__).with_name("gate_text_pairs.jsonl"))
    parser.add_argument("--model", default=GateSettings().text_model)
    arguments = parser.parse_args()

    pairs = [json.loads(line) for line in arguments.pairs.read_text("utf-8").splitlines()]
    embedder = Embedder(arguments.model)
    experts = embedder.embed([pair["solution"] for pair in pairs])
    candidates = embedder.embed([pair["candidate"] for pair in pairs])
    scores = [float(similarity) for similarity in (experts * candidates).sum(axis=1)]

    by_kind: dict[str, list[float]] = {}
    for pair, score in zip(pairs, scores, strict=True):
        by_kind.setdefault(pair["kind"], []).append(score)
    told_apart = [(score, pair) for score, pair in zip(scores, pairs, strict=True) if pair["kind"] != "altered"]
    measured = calibration([score for score, _ in told_apart], [pair["label"] == "accept" for _, pair in told_apart])
    best = measured.best(max_false_accept_rate=0.02)
    print(
        json.dumps(
            {
                "benchmark": "gate_text_threshold",
                "model": arguments.model,
                "pairs": len(pairs),
                "threshold": round(best.threshold, 3),
                "false_accept_rate": round(best.false_accept_rate, 3),
                "false_reject_rate": round(best.false_reject_rate, 3),
                "separation": round(measured.separation, 3),
                "false_accept_rate_by_kind": {
                    kind: round(sum(s >= best.threshold for s in by_kind[kind]) / len(by_kind[kind]), 3)
                    for kind in ("mistaken", "related", "unrelated", "altered")
                },
                "similarity_min_mean_max": {
                    kind: [round(x, 3) for x in (min(s), sum(s) / len(s), max(s))] for kind, s in by_kind.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
