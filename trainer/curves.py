"""`curves.png`: how a training went, drawn from its history.

Not here: the history itself (`trainer.history`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from agent.disk import replacing
from trainer.history import StepMetrics
from trainer.report import Kind

_CHECKS_SHOWN = 7
_WINDOW_SHARE = 0.05
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#3b6fb6", "#e07b39", "#3a9d6e", "#c44e52", "#666666"
_STACK = ("#c44e52", "#e07b39", "#e8b04a", "#8172b3", "#64b5cd", "#937860", "#da8bc3", "#b0b0b0")

Values = npt.NDArray[np.float64]


def draw_curves(records: Sequence[StepMetrics], png: Path) -> None:
    """Draw six panels over the optimiser steps; light lines are single steps, strong ones trailing means.

    Args:
        records: of one training, in order; metrics that are missing are left out of their panel.
        png: the file to write; it appears whole, in place of an older one.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(15, 8), layout="constrained")
    panels = figure.subplots(2, 3)
    for draw, axes in zip(_PANELS, panels.flat, strict=True):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        draw(axes, records)
        if not axes.has_data():
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=_GREY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
        elif axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, framealpha=0.8)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    with replacing(png) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)


def _draw_pass_rate(axes: Any, records: Sequence[StepMetrics]) -> None:
    axes.set_title("Pass rate")
    _trend(axes, records, "pass_rate", "training (light: each step; strong: mean)", _BLUE)
    _points(axes, records, "pass_rate", "held out", _ORANGE)
    _points(axes, records, "accepted", "held out, rows with a kept rewrite", _GREEN)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)


def _draw_mismatch(axes: Any, records: Sequence[StepMetrics]) -> None:
    axes.set_title("Mismatch, nats/token")
    _trend(axes, records, "mismatch", "feasible rewrites in training", _BLUE)
    _points(axes, records, "mismatch", "held-out targets, fallbacks counted in", _ORANGE)
    _, experts = _series(records, "eval", "expert_mismatch")
    if experts.size:
        axes.axhline(experts.mean(), color=_GREY, linestyle="--", linewidth=1.4, label="held-out experts")
    axes.set_ylim(bottom=0)


def _draw_reward(axes: Any, records: Sequence[StepMetrics]) -> None:
    axes.set_title("Reward and its terms")
    _trend(axes, records, "reward", "reward", _BLUE)
    _trend(axes, records, "r_dist", "r_dist, feasible", _ORANGE)
    _trend(axes, records, "r_div", "r_div, feasible", _GREEN)
    axes.set_ylim(bottom=0)


def _draw_kl_and_entropy(axes: Any, records: Sequence[StepMetrics]) -> None:
    axes.set_title("KL and entropy, nats/token")
    curves = [
        (name, label, color)
        for name, label, color in (("kl", "KL to the base model", _RED), ("entropy", "entropy", _BLUE))
        if _series(records, "train", name)[0].size
    ]
    for place, (name, label, color) in enumerate(curves):
        own = axes.twinx() if place else axes
        _trend(own, records, name, "", color)
        own.set_ylim(bottom=0)
        own.set_ylabel(label, color=color)
        own.tick_params(axis="y", colors=color)
        own.spines["top"].set_visible(False)


def _draw_failures(axes: Any, records: Sequence[StepMetrics]) -> None:
    axes.set_title("Rewrites refused, by check")
    steps, shares = _failures(records)
    if steps.size:
        means = [_trailing_mean(values) for values in shares.values()]
        axes.stackplot(steps, means, labels=list(shares), colors=_STACK, alpha=0.85, linewidth=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)


def _draw_length(axes: Any, records: Sequence[StepMetrics]) -> None:
    axes.set_title("Length over the expert's")
    _trend(axes, records, "length_ratio", "feasible rewrites in training", _BLUE)
    _points(axes, records, "length_ratio", "held out, kept rewrites", _ORANGE)
    if axes.has_data():
        axes.axhline(1, color=_GREY, linestyle="--", linewidth=1.2)
    axes.set_ylim(bottom=0)


_PANELS = (_draw_pass_rate, _draw_mismatch, _draw_reward, _draw_kl_and_entropy, _draw_failures, _draw_length)


def _trend(axes: Any, records: Sequence[StepMetrics], name: str, label: str, color: str) -> None:
    """A training metric: its values light, their trailing mean strong."""
    steps, values = _series(records, "train", name)
    if steps.size:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(steps, _trailing_mean(values), color=color, linewidth=2, label=label)


def _points(axes: Any, records: Sequence[StepMetrics], name: str, label: str, color: str) -> None:
    """A held-out metric."""
    steps, values = _series(records, "eval", name)
    if steps.size:
        axes.plot(steps, values, "o-", color=color, markersize=5, linewidth=1.2, label=label)


def _series(records: Sequence[StepMetrics], kind: Kind, name: str) -> tuple[Values, Values]:
    """Steps and values where the metric was measured, shape (N,) each."""
    points = [(r.step, r.metrics[name]) for r in records if r.kind == kind and name in r.metrics]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def _failures(records: Sequence[StepMetrics]) -> tuple[Values, dict[str, Values]]:
    """Steps (N,), and the share refused by each check (N,): those that refuse most, then the others together."""
    train = [r for r in records if r.kind == "train"]
    names = {name for r in train for name in r.metrics if name.startswith("failed/")}
    shares = {
        name.removeprefix("failed/"): np.array([r.metrics.get(name, 0.0) for r in train]) for name in sorted(names)
    }
    ranked = dict(sorted(shares.items(), key=lambda item: -float(item[1].sum())))
    rest = list(ranked)[_CHECKS_SHOWN:]
    if rest:
        others = np.sum([ranked.pop(name) for name in rest], axis=0)
        ranked["others"] = others
    steps = np.array([r.step for r in train], dtype=float) if ranked else np.empty(0)
    return steps, ranked


def _trailing_mean(values: Values) -> Values:
    """Mean of each value and those before it, as many as a twentieth of all, three at least."""
    width = max(3, round(_WINDOW_SHARE * values.size))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, values.size + 1)
    first = np.maximum(last - width, 0)
    means: Values = (sums[last] - sums[first]) / (last - first)
    return means
