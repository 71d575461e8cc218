"""What is logged of a batch of roll-out groups, each figure a plain float."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from agent.mismatch import summarise
from agent.records import Check
from trainer.rollout import Rewrite, RolloutGroup

_RUN = 4


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Means over the rewrites of `groups`; reward terms and mismatch over the feasible ones (NaN where there is none).

    `failed/<check>` is the share of rewrites that this check refused, `no_signal` the share of groups whose rewards
    are all equal. Lengths in tokens, mismatch in nats per token.
    """
    rewrites = [rewrite for group in groups for rewrite in group.rewrites]
    feasible = [(group, i) for group in groups for i, rewrite in enumerate(group.rewrites) if rewrite.feasible]
    mismatches = [mismatch for rewrite in rewrites if (mismatch := rewrite.mismatch)]
    failed = Counter(check.name for rewrite in rewrites if (check := _refused_by(rewrite)))
    return {
        "reward": mean(reward for group in groups for reward in group.reward.reward),
        "pass_rate": len(feasible) / len(rewrites),
        "no_signal": mean(not group.has_signal for group in groups),
        "truncated": mean(rewrite.completion.finish_reason == "length" for rewrite in rewrites),
        "r_dist": mean(group.reward.distance[i] for group, i in feasible),
        "r_div": mean(group.reward.diversity[i] for group, i in feasible),
        "mismatch": mean(mismatch.nll for mismatch in mismatches),
        "mismatch_p95": mean(mismatch.p95 for mismatch in mismatches),
        "expert_mismatch": mean(summarise(group.expert).nll for group in groups if group.expert),
        "length": mean(len(rewrite.completion.ids) for rewrite in rewrites),
        "length_ratio": mean(len(group.rewrites[i].completion.ids) / group.expert_tokens for group, i in feasible),
        **{f"failed/{name}": count / len(rewrites) for name, count in failed.items()},
    }


def repeated_share(ids: Sequence[int]) -> float:
    """Share of a text's runs of four tokens that occurred before in it: 0 without repetition, near 1 in a loop."""
    count = len(ids) - _RUN + 1
    if count < 1:
        return 0.0
    return 1 - len({tuple(ids[i : i + _RUN]) for i in range(count)}) / count


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    known = list(values)
    return math.fsum(known) / len(known) if known else math.nan


def _refused_by(rewrite: Rewrite) -> Check | None:
    return rewrite.verdict.failed_check if rewrite.verdict else None
