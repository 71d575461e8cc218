"""The pictures of a comparison, drawn from its results: files, and nothing that a table does not say too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from agent.disk import replacing
from trainer.compare.methods import METHODS
from trainer.compare.results import Comparison, Figure, Point, Spent, initial_losses

_COLORS = (
    "#3b6fb6",
    "#e07b39",
    "#3a9d6e",
    "#c44e52",
    "#8172b3",
    "#937860",
    "#da8bc3",
    "#64b5cd",
    "#b8a12f",
    "#4f7f3f",
    "#d1495b",
    "#1f3a5f",
    "#7a5195",
    "#2a9d8f",
    "#bc5090",
    "#f4a261",
    "#6d597a",
    "#8d99ae",
)
_GREY = "#666666"
_PARTS = {"rewriting": _COLORS[0], "scoring": _COLORS[1], "training": _COLORS[2]}


def draw_all(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Draw every picture into `folder`; returns them by title, in the order of the report.

    Raises:
        OSError: they cannot be written.
    """
    drawn = {}
    for title, (name, draw) in _PICTURES.items():
        canvas = draw(comparison)
        path = folder / name
        with replacing(path) as unfinished:
            canvas.savefig(unfinished, format="png", dpi=110)
        drawn[title] = path
    return drawn


def _gain_against_forgetting(comparison: Comparison) -> Canvas:
    """A panel for each shape and number of steps, a line for each method, its points by learning rate."""
    panels = _panels(comparison.points)
    canvas, all_axes = _canvas(max(1, len(panels)))
    if not panels:
        _finish(all_axes[0])
    for axes, (title, points) in zip(all_axes, panels.items(), strict=False):
        axes.set(title=title, xlabel="forgetting F, points (less is better)", ylabel="gain G, points")
        axes.axhline(0, color=_GREY, linewidth=0.8)
        axes.axvline(0, color=_GREY, linewidth=0.8)
        for method, line in _by_method(points):
            known = [p for p in line if p.gain.value is not None and p.forgetting.value is not None]
            if not known:
                continue
            color = _color(method)
            x, y = [p.forgetting.value for p in known], [p.gain.value for p in known]
            # From the base model on, as methods are matched.
            axes.plot([0, *x], [0, *y], color=color, linewidth=1.2, alpha=0.85, label=method)
            axes.errorbar(
                x,
                y,
                fmt="none",
                xerr=_errors([p.forgetting for p in known]),
                yerr=_errors([p.gain for p in known]),
                ecolor=color,
                elinewidth=0.6,
                alpha=0.85,
            )
            for p in known:
                face = color if p.on_front else "white"
                axes.plot(p.forgetting.value, p.gain.value, "o", color=color, markerfacecolor=face, markersize=6)
        _finish(axes)
    return canvas


def _initial_loss(comparison: Comparison) -> Canvas:
    """The base model's loss on each method's rows: how far they are from it."""
    canvas, (axes,) = _canvas(1)
    losses = initial_losses(comparison.points)
    filtered = {name for name in losses if METHODS[name].success_only}
    names = [f"{name}*" if name in filtered else name for name in losses]
    bars = axes.bar(
        names,
        [loss.value or 0.0 for loss in losses.values()],
        yerr=_errors(list(losses.values())),
        color=[_color(name) for name in losses],
        error_kw={"elinewidth": 0.8, "ecolor": _GREY},
    )
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    title = "Loss before training"
    if filtered:
        title += " (* only questions whose rewrite passed the gate)"
    axes.set(title=title, ylabel="nats a completion token")
    axes.tick_params(axis="x", rotation=45)
    _finish(axes, has_data=bool(losses), legend=False)
    return canvas


def _loss_curves(comparison: Comparison) -> Canvas:
    """Every fine-tuning, in its method's colour."""
    shapes = list(dict.fromkeys(run.shape for run in comparison.runs))
    canvas, all_axes = _canvas(max(1, len(shapes)))
    for axes, shape in zip(all_axes, shapes, strict=False):
        named: set[str] = set()
        axes.set(title=f"Training, {shape}", xlabel="step", ylabel="nats a completion token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for run in comparison.runs:
            if run.shape == shape:
                label = None if run.method in named else run.method
                named.add(run.method)
                axes.plot(
                    run.curve.steps, run.curve.nll, ".-", color=_color(run.method), linewidth=1, alpha=0.6, label=label
                )
        _finish(axes)
    if not shapes:
        _finish(all_axes[0])
    return canvas


def spent_on_longest(points: Sequence[Point]) -> dict[str, Spent]:
    """What one fine-tuning of the most steps spent, by method and shape."""
    steps = max((point.steps for point in points), default=0)
    return {f"{point.method}, {point.shape}": point.spent for point in points if point.steps == steps}


def _compute(comparison: Comparison) -> Canvas:
    """What one fine-tuning of the most steps costs with its rows, in token passes and in seconds."""
    canvas, (passes, seconds) = _canvas(2)
    spent = spent_on_longest(comparison.points)
    names = list(spent)
    canvas.set_figheight(max(4.5, 0.25 * len(names)))
    parts = {
        passes: {
            "rewriting": [s.rewriting_passes for s in spent.values()],
            "scoring": [s.scoring_passes for s in spent.values()],
            "training": [s.training_passes for s in spent.values()],
        },
        seconds: {
            "rewriting and its scoring": [s.rewriting_seconds for s in spent.values()],
            "training": [s.training_seconds for s in spent.values()],
        },
    }
    for axes, stack in parts.items():
        left = [0.0] * len(names)
        for part, values in stack.items():
            axes.barh(names, values, left=left, color=_PARTS[part.split()[0]], label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.invert_yaxis()
        _finish(axes, has_data=bool(names))
    passes.set(title="Compute of the longest training", xlabel="token passes")
    seconds.set(title="Time, as measured", xlabel="seconds")
    return canvas


_PICTURES = {
    "Gain against forgetting": ("gain_forgetting.png", _gain_against_forgetting),
    "Loss of the base model on each method's rows": ("initial_loss.png", _initial_loss),
    "Training": ("loss_curves.png", _loss_curves),
    "Compute": ("compute.png", _compute),
}


def _canvas(panels: int) -> tuple[Canvas, list[Any]]:
    columns = min(panels, 3)
    rows = -(-panels // columns)
    canvas = Canvas(figsize=(6.5 * columns, 4.5 * rows), layout="constrained")
    every = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axes in every[panels:]:
        axes.set_visible(False)
    return canvas, every[:panels]


def _panels(points: Sequence[Point]) -> dict[str, list[Point]]:
    panels: dict[str, list[Point]] = {}
    for point in points:
        panels.setdefault(f"{point.shape}, {point.steps} steps", []).append(point)
    return panels


def _by_method(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    return [(method, list(line)) for method, line in groupby(points, key=lambda point: point.method)]


def _color(method: str) -> str:
    return _COLORS[list(METHODS).index(method) % len(_COLORS)]


def _errors(figures: Sequence[Figure]) -> list[list[float]]:
    """Distances to the ends of the intervals, (2, N)."""
    ends = [(f.value or 0.0, f.low, f.high) for f in figures]
    below = [max(0.0, value - low) if low is not None else 0.0 for value, low, _ in ends]
    return [below, [max(0.0, high - value) if high is not None else 0.0 for value, _, high in ends]]


def _finish(axes: Any, *, has_data: bool | None = None, legend: bool = True) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if not (axes.has_data() if has_data is None else has_data):
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", color=_GREY, transform=axes.transAxes)
    elif legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.8)
