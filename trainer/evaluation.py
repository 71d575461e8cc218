"""Held-out evaluation of the rewriting agent: what the data set would look like if it were rewritten now."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import PartialState
from accelerate.utils import gather_object

from agent.demonstrations import Demonstration
from agent.embeddings import Embedder
from agent.mismatch import summarise
from agent.records import Mismatch
from agent.reward import pairwise_distances
from trainer.metrics import mean, repeated_share
from trainer.rollout import Rewrite, RolloutGroup, RolloutWorker

# Every evaluation draws alike.
_DRAW = "held out"


async def evaluate(
    worker: RolloutWorker,
    rows: Sequence[Demonstration],
    embedder: Embedder,
    *,
    samples: int,
    temperature: float,
    adapter: str | None,
) -> dict[str, float]:
    """Rewrite `rows` as serving would, and measure. The processes of a training share the rows; each gets all figures.

    Returns:
        `pass_rate`: share of rewrites that pass the gate.
        `accepted`: share of rows with a rewrite that serving would keep.
        `mismatch`, `mismatch_p95`: mean over the rows' final targets, fallbacks counted in, nats per token.
        `expert_mismatch`, `expert_mismatch_p95`: the same of the experts.
        `diversity`: mean distance (1 - cos) / 2 between different feasible rewrites of a row.
        `length_ratio`: kept rewrites over their experts, in tokens.
        `repetition`: mean share of repeated 4-grams in kept rewrites.
        `score`: 1 - mismatch / expert_mismatch; what the best adapter is chosen by.
    """
    process = PartialState()
    share = -(-len(rows) // process.num_processes)
    own = rows[process.process_index * share :][:share]
    groups: list[RolloutGroup] = gather_object(
        await worker.groups(
            own, samples=samples, temperature=temperature, adapter=adapter, draw=_DRAW, score_experts=True
        )
    )
    experts = [summarise(group.expert) for group in groups]
    kept = [keep(group) for group in groups]
    targets = [_mismatch(rewrite) if rewrite else expert for rewrite, expert in zip(kept, experts, strict=True)]
    mismatch, expert_mismatch = mean(t.nll for t in targets), mean(e.nll for e in experts)
    return {
        "pass_rate": mean(group.pass_rate for group in groups),
        "accepted": mean(rewrite is not None for rewrite in kept),
        "mismatch": mismatch,
        "mismatch_p95": mean(t.p95 for t in targets),
        "expert_mismatch": expert_mismatch,
        "expert_mismatch_p95": mean(e.p95 for e in experts),
        "diversity": mean(d for group in groups if (d := _diversity(group, embedder)) is not None),
        "length_ratio": mean(
            len(rewrite.completion.ids) / group.expert_tokens
            for rewrite, group in zip(kept, groups, strict=True)
            if rewrite
        ),
        "repetition": mean(repeated_share(rewrite.completion.ids) for rewrite in kept if rewrite),
        "score": 1 - mismatch / expert_mismatch,
    }


def keep(group: RolloutGroup) -> Rewrite | None:
    """What serving would keep (as `agent.rewriter`): feasible, less surprising than the expert, and the least so."""
    expert = summarise(group.expert).nll
    nearer = [r for r in group.rewrites if r.feasible and _mismatch(r).nll < expert]
    return min(nearer, key=lambda rewrite: _mismatch(rewrite).nll, default=None)


def _mismatch(rewrite: Rewrite) -> Mismatch:
    mismatch = rewrite.mismatch
    assert mismatch is not None, "feasible rewrites are scored"
    return mismatch


def _diversity(group: RolloutGroup, embedder: Embedder) -> float | None:
    """None for fewer than two different feasible rewrites."""
    texts = list(dict.fromkeys(rewrite.text for rewrite in group.rewrites if rewrite.feasible))
    if len(texts) < 2:
        return None
    distances = pairwise_distances(embedder.embed(texts))
    return float(distances.sum() / (len(texts) * (len(texts) - 1)))
