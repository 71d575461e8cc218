"""Adapter folders on disk: what they must hold before an engine may open them.

A published adapter is a folder with `adapter_model.safetensors`, `adapter_config.json` and `rewright.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agent.exceptions import AdapterError

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "rewright.json"
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A checked adapter folder and the name that records give it."""

    name: str
    path: Path


def open_adapter(path: Path, model: str) -> AdapterFiles:
    """Check an adapter folder without reading its weights.

    Args:
        path: the folder; `name/version` when published.
        model: name of the base model it is to run on.

    Raises:
        AdapterError: a file is missing, weights are pickled, it is no LoRA, or it is made for another base model.
    """
    if not path.is_dir():
        raise AdapterError(f"adapter {path}: no such folder")
    if not (path / WEIGHTS).is_file():
        pickled = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
        hint = f"; pickled weights ({', '.join(pickled)}) are refused, save it as safetensors" if pickled else ""
        raise AdapterError(f"adapter {path}: {WEIGHTS} is missing{hint}")
    config = _read_json(path / CONFIG)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"adapter {path}: {CONFIG} has peft_type {config.get('peft_type')!r}, only LORA is served")
    card = _read_json(path / CARD) if (path / CARD).is_file() else {}
    base = card.get("base_model")
    if base is not None and base != model:
        raise AdapterError(f"adapter {path} was trained on {base}, the engine runs {model}; pass --model {base}")
    name, version = card.get("name"), card.get("version")
    return AdapterFiles(f"{name}@{version}" if name and version else path.name, path)


def _read_json(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise AdapterError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes; it is not an adapter's configuration")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path} must hold a JSON object")
    return value
