"""What a group of rewrites of one demonstration earns: r = gate * (1 + w_dist * r_dist + w_div * r_div).

Pure functions over a whole group (arXiv 2602.11220, reward equation). Presets: `gate_only` keeps the gate alone,
`paper` the terms as published, `rewright` terms of our own that give a signal where those do not.

The published distance ranks feasible rewrites by a z-score: a lead of 0.01 nats counts as much as one of 1.0, and a
single feasible rewrite has none. The anchored distance compares with the expert. A plain mean over a rewrite's tokens
also falls when it is padded with predictable words. So the mean is taken over at most twice the expert's tokens,
beyond which nothing that is appended lowers it, and a tail term looks at a fixed number of the most surprising tokens.
Within twice the expert's length, words that the base model expects do count: they are what it would have written.
Published weights make the distance some 7 % of what passing the gate pays; ours are larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.settings import RewardSettings

_TAIL = 0.05
# Of the expert's tokens: an explanation takes more than terse notes; our seed rewrites have 1.9 times as many.
_ROOM = 2
# Distances between rewrites of one problem are small: near-copies have 0.002 and less, other wordings 0.02 and more.
_DIVERSITY_SCALE = 0.01


@dataclass(frozen=True, slots=True)
class GroupReward:
    """Rewards of a group and their terms, one value a rewrite; terms are 0 where a rewrite is not feasible."""

    reward: list[float]
    distance: list[float]
    diversity: list[float]


def group_reward(
    settings: RewardSettings,
    feasible: Sequence[bool],
    surprisals: Sequence[Sequence[float] | None],
    expert: Sequence[float],
    embeddings: npt.NDArray[np.float32],
) -> GroupReward:
    """Rewards of K rewrites of one demonstration.

    Args:
        settings: the preset and its weights.
        feasible: whether each passed the gate.
        surprisals: per-token surprisal of each under the base model, nats; read for feasible ones only.
        expert: the same of the expert's target.
        embeddings: unit rows (feasible rewrites, D), in order; may be empty for `gate_only`.

    Raises:
        ValueError: a feasible rewrite has no surprisals, or the embeddings are not one a feasible rewrite.
    """
    places = [i for i, passed in enumerate(feasible) if passed]
    reward, distance, diversity = ([0.0] * len(feasible) for _ in range(3))
    if settings.preset == "gate_only" or not places:
        return GroupReward([float(passed) for passed in feasible], distance, diversity)
    targets = [surprisals[i] for i in places]
    if any(not target for target in targets):
        raise ValueError("every feasible rewrite needs its surprisals")
    if len(embeddings) != len(places):
        raise ValueError(f"{len(embeddings)} embeddings for {len(places)} feasible rewrites")
    known = [target for target in targets if target]
    if settings.preset == "paper":
        distances, diversities = standardised_distance(known), marginal_diversity(embeddings)
    else:
        distances, diversities = anchored_distance(known, expert, settings), mean_diversity(embeddings)
    for place, r_dist, r_div in zip(places, distances, diversities, strict=True):
        distance[place], diversity[place] = r_dist, r_div
        reward[place] = 1 + settings.distance_weight * r_dist + settings.diversity_weight * r_div
    return GroupReward(reward, distance, diversity)


def standardised_distance(targets: Sequence[Sequence[float]]) -> list[float]:
    """sigmoid(-z), z the mean surprisal standardised within the feasible set (arXiv 2602.11220); 0.5 for one alone."""
    means = np.array([np.mean(target) for target in targets])
    spread = means.std() if len(means) > 1 else 0.0
    if spread < 1e-9:  # the same, but for rounding
        return [0.5] * len(means)
    return [_sigmoid(-z) for z in (means - means.mean()) / spread]


def anchored_distance(
    targets: Sequence[Sequence[float]], expert: Sequence[float], settings: RewardSettings
) -> list[float]:
    """How much nearer to the base model than the expert, in (0, 1); 0.5 for the expert itself.

    (1 - w) * sigmoid((body(expert) - body) / tau) + w * sigmoid((tail(expert) - tail) / tau_tail), with body the sum of
    surprisals over the token count, but at most twice that of the expert, and tail the mean of as many of the largest
    surprisals as make a twentieth of the expert's tokens. Nats per token. From twice the expert's length on, appending
    tokens lowers neither.
    """
    length, tail = _ROOM * len(expert), max(1, math.ceil(_TAIL * len(expert)))
    expert_body, expert_tail = _body(expert, length), _tail(expert, tail)
    weight = settings.tail_weight
    return [
        (1 - weight) * _sigmoid((expert_body - _body(target, length)) / settings.distance_scale)
        + weight * _sigmoid((expert_tail - _tail(target, tail)) / settings.tail_scale)
        for target in targets
    ]


def marginal_diversity(embeddings: npt.NDArray[np.float32]) -> list[float]:
    """What each adds to the mean pairwise distance (1 - cos) / 2 of the set (arXiv 2602.11220); 0 for one alone."""
    count = len(embeddings)
    distances = pairwise_distances(embeddings)
    total = distances.sum() / 2
    whole = total / (count * (count - 1) / 2) if count > 1 else 0.0
    others = (count - 1) * (count - 2) / 2
    without = [(total - row.sum()) / others if others else 0.0 for row in distances]
    return [float(whole - rest) for rest in without]


def mean_diversity(embeddings: npt.NDArray[np.float32]) -> list[float]:
    """1 - exp(-d / 0.01), d the mean distance (1 - cos) / 2 to the others of the set; 0 for one alone.

    Unlike the marginal contribution it does not vanish when all are equally distinct, and it saturates, so that
    wandering off the subject earns nothing over another wording.
    """
    count = len(embeddings)
    if count < 2:
        return [0.0] * count
    return [float(-math.expm1(-row.sum() / (count - 1) / _DIVERSITY_SCALE)) for row in pairwise_distances(embeddings)]


def pairwise_distances(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(1 - cos) / 2 between all rows, (K, K), exact zeros on the diagonal."""
    rows = embeddings.astype(np.float64)
    distances = np.clip((1 - rows @ rows.T) / 2, 0, 1)
    np.fill_diagonal(distances, 0)
    return np.asarray(distances)


def _body(surprisals: Sequence[float], length: int) -> float:
    return sum(surprisals) / min(len(surprisals), length)


def _tail(surprisals: Sequence[float], count: int) -> float:
    largest = sorted(surprisals, reverse=True)[:count]
    return sum(largest) / len(largest)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
