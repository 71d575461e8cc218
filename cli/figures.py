"""Surprisal of a whole file, gathered row by row: figures, the tokens that carry most of it, histograms."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agent.mismatch import Surprisal
from cli.console import print_table

_TOKENS_SHOWN = 12


class Figures:
    """Every token's surprisal and every row's mean, in nats."""

    def __init__(self) -> None:
        self.errors = 0
        self._tokens = array("f")
        self._row_means = array("f")
        self._nats_by_token: defaultdict[str, float] = defaultdict(float)
        self._times: Counter[str] = Counter()

    @property
    def rows(self) -> int:
        """Rows seen, errors included."""
        return len(self._row_means) + self.errors

    def add(self, surprisal: Surprisal) -> None:
        """Count one row."""
        self._tokens.extend(surprisal.nats)
        self._row_means.append(surprisal.summary().nll)
        self._times.update(surprisal.tokens)
        for token, nats in zip(surprisal.tokens, surprisal.nats, strict=True):
            self._nats_by_token[token] += nats

    def as_dict(self) -> dict[str, Any]:
        """`nll` is the mean over rows of nats per token, as in output rows; percentiles are over tokens."""
        counts = {"rows": self.rows, "errors": self.errors, "tokens": len(self._tokens)}
        if not self._tokens:
            return counts
        p50, p95 = np.percentile(self._tokens, [50, 95])
        total = sum(self._nats_by_token.values())
        most = heapq.nlargest(_TOKENS_SHOWN, self._nats_by_token.items(), key=lambda item: item[1])
        return counts | {
            "nll": round(float(np.mean(self._row_means)), 4),
            "p50": round(float(p50), 4),
            "p95": round(float(p95), 4),
            "most_surprising": [
                {
                    "token": token,
                    "times": self._times[token],
                    "nats": round(nats / self._times[token], 3),
                    "share": round(nats / total, 4),
                }
                for token, nats in most
            ],
        }

    def print(self, to: Console) -> None:
        """Two tables."""
        figures = self.as_dict()
        most = figures.pop("most_surprising", [])
        print_table("Mismatch, nats/token", tuple(figures), [tuple(figures.values())], to=to)
        rows = [(repr(t["token"]), t["times"], t["nats"], f"{100 * t['share']:.1f} %") for t in most]
        if rows:
            print_table("Tokens that carry most of it", ("token", "times", "mean nats", "share"), rows, to=to)

    def draw(self, file: Path, model: str) -> None:
        """Histograms over tokens and over rows, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        by_token, by_row = figure.subplots(1, 2)
        by_token.hist(self._tokens, bins=60, log=True)
        by_token.set(xlabel="surprisal of a token, nats", ylabel="tokens", title=f"{len(self._tokens)} tokens")
        by_row.hist(self._row_means, bins=40)
        by_row.set(xlabel="mismatch of a row, nats/token", ylabel="rows", title=f"{len(self._row_means)} rows")
        figure.suptitle(f"How surprised {model} is by the expert")
        figure.savefig(file, format="png", dpi=120)
