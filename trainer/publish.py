"""Publishing: a trained adapter becomes the next immutable version in the folder of its name.

Not here: reading published adapters (`agent.adapters`), and choosing what is published (`trainer.train`).
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.adapters import CARD, CONFIG, WEIGHTS, adapter_versions, is_name, open_adapter, read_config
from agent.exceptions import AdapterError
from agent.versions import claim_version
from trainer.exceptions import PublishError

_EXTRAS = ("curves.png", "samples.md")


def package_versions(*further: str) -> dict[str, str]:
    """Of what the weights depend on, and of `further` packages."""
    packages = ("rewright", "torch", "transformers", "trl", "peft", *further)
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def creation_time() -> str:
    """Now, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class DataOfTraining:
    """What was trained on: the file's name without folders, its rows, and its SHA-256."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What `rewright.json` says of an adapter, but for its version.

    Attributes:
        name: of the adapter; the folder's name.
        base_model: name of the base model, as in records.
        base_commit: of the hub, where the base model came from there.
        base_revision: `weights_sha256` of the base model's folder.
        left_out: how many rows were not used, by reason.
        tasks: how many of the used rows each task of the gate has.
        settings: resolved settings of the training.
        reward: the reward's preset.
        curves: what each held-out evaluation measured, with its `step`.
        held_out: the same of the published step alone; what is not finite is left out.
        step: optimiser steps that the published weights have seen.
        versions: of the packages and of Python.
        created: ISO 8601, UTC.
    """

    name: str
    base_model: str
    base_commit: str | None
    base_revision: str
    data: DataOfTraining
    left_out: Mapping[str, int]
    tasks: Mapping[str, int]
    settings: Mapping[str, Any]
    reward: str
    curves: Sequence[Mapping[str, float]]
    held_out: Mapping[str, float]
    step: int
    versions: Mapping[str, str] = field(default_factory=package_versions)
    created: str = field(default_factory=creation_time)


def publish(weights: Path, name_folder: Path, card: AdapterCard) -> Path:
    """Make the next version of an adapter: `name_folder/<version>`, which appears whole and is read-only.

    Several processes may publish under one name at once: each gets a version of its own.

    Args:
        weights: folder that PEFT saved the adapter into; `curves.png` and `samples.md` in it are published too.
        name_folder: of the adapter's name, made if it is not there; other files in it are left alone.
        card: what is known of the adapter.

    Returns:
        The new folder.

    Raises:
        PublishError: the name is not allowed, the weights are not finite or no plain LoRA, or nothing can be written.
    """
    if not is_name(card.name):
        raise PublishError(f"{card.name!r} is no name for an adapter: use letters, digits, '.', '_' and '-'")
    try:
        open_adapter(weights, card.base_model)
        name_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".publishing-", dir=name_folder) as unfinished:
            folder = Path(unfinished) / "adapter"
            folder.mkdir()
            save_file(_as_stored(weights / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})
            config = portable_config(read_config(weights), card.base_model)
            (folder / CONFIG).write_text(_as_json(config), encoding="utf-8")
            for extra in _EXTRAS:
                if (weights / extra).is_file():
                    shutil.copyfile(weights / extra, folder / extra)
            number = claim_version(folder, name_folder, CARD, partial(_card_text, card))
            return name_folder / str(number)
    except AdapterError as error:
        raise PublishError(f"nothing is published: {error}") from error
    except OSError as error:
        raise PublishError(f"{name_folder}: the adapter cannot be published: {error}") from error


def published_before(weights: Path, name_folder: Path, card: AdapterCard) -> Path | None:
    """The newest version, where it is what `publish` would make of the same: a finished training that is resumed."""
    newest = name_folder / str(max(adapter_versions(name_folder), default=0))
    try:
        known = json.loads((newest / CARD).read_text(encoding="utf-8"))
        told = json.loads(json.dumps({"step": card.step, "data": asdict(card.data), "settings": card.settings}))
        if any(known.get(name) != value for name, value in told.items()):
            return None
        stored, now = load_file(newest / WEIGHTS), _as_stored(weights / WEIGHTS)
    except (OSError, ValueError, SafetensorError):  # no version yet, or none that can be compared
        return None
    same = stored.keys() == now.keys() and all(torch.equal(stored[name], now[name]) for name in now)
    return newest if same else None


def _card_text(card: AdapterCard, number: int) -> str:
    held_out = {name: value for name, value in card.held_out.items() if math.isfinite(value)}
    return _as_json({"name": card.name, "version": str(number)} | asdict(card) | {"held_out": held_out})


def portable_config(config: dict[str, Any], base_model: str) -> dict[str, Any]:
    """PEFT's configuration without what it notes of the machine that trained; its modules are a set, so sorted."""
    targets = config["target_modules"]
    return config | {
        "base_model_name_or_path": base_model,
        "revision": None,
        "auto_mapping": None,
        "inference_mode": True,
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
    }


def _as_stored(source: Path) -> dict[str, Tensor]:
    """The tensors cast to bfloat16."""
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(source).items()}


def _as_json(content: Mapping[str, Any]) -> str:
    return f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n"
