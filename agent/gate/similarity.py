"""Free text: the candidate must be about what the expert's completion is about, by sentence embeddings.

The default threshold 0.72 was measured with the default model on 108 labelled pairs of our own
(`benchmarks/gate_text_threshold.py`): of 54 wrong answers in other words it accepts 1 (2 %), of 36 faithful
paraphrases it rejects 10 (28 %). It does not see a meaning turned round in the expert's own words: of 18 such it
accepts 15. Where that matters, have the reasoning judge follow. The default model knows English;
Russian texts score high whatever they say. Not here: the embedding model (`agent.embeddings`).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from agent.embeddings import Embedder
from agent.records import Check


class TextCheck:
    """Cosine similarity of candidate and expert, at least `threshold`; the model loads at the first use."""

    def __init__(self, model: str, threshold: float) -> None:
        self._model = model
        self._threshold = threshold
        self._embedder: Embedder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embeddings")

    async def __call__(self, candidate: str, expert: str) -> Check:
        """Raises ModelError when the embedding model cannot be loaded."""
        similarity = await asyncio.get_running_loop().run_in_executor(self._thread, self._similarity, candidate, expert)
        sign = "≥" if similarity >= self._threshold else "<"
        return Check("text", similarity >= self._threshold, f"similarity {similarity:.3f} {sign} {self._threshold:g}")

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _similarity(self, candidate: str, expert: str) -> float:
        if self._embedder is None:
            self._embedder = Embedder(self._model)
        ours, theirs = self._embedder.embed([candidate, expert])
        return float(ours @ theirs)
