"""Adapter folders on disk: how they are named, and what they must hold before an engine may open them.

A published adapter is a folder `NAME/VERSION` with `adapter_model.safetensors`, `adapter_config.json` and
`rewright.json`, its card; an adapter without a card, as PEFT saves it, is a folder of any name. Their content may come
from anywhere. Not here: making them (`trainer.publish`), and whether the weights fit a model (`agent.engine.lora`).
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.exceptions import AdapterError
from agent.models import PICKLED
from agent.strict_json import JsonValueError, check_json_value, parse_json
from agent.weights import read_tensors, remembered_sha256, weights_sha256

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "rewright.json"
MAX_RANK = 512
NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
MAX_VERSION = 999_999_999

_MAX_JSON_BYTES = 1 << 22
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_CARD_FIELDS = {
    "name": (_NAME, "math"),
    "version": (_VERSION, "3"),
    "base_model": (re.compile(r".{1,300}"), "smollm2-135m"),
}
_MODULE = re.compile(r"[\w.-]+", re.ASCII)
_TENSOR = re.compile(r"base_model\.model\.[\w.-]+\.lora_[AB]\.weight", re.ASCII)
_CHECKED = {"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"}
# Descriptions, what only training reads, and what only matters beside an option that is refused.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
_SERVED = _CHECKED | _WITHOUT_EFFECT | {"use_rslora"}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A checked adapter folder and the name that records give it."""

    name: str
    path: Path


def is_name(text: str) -> bool:
    """Whether an adapter may be published under this name."""
    return _NAME.fullmatch(text) is not None


def split_version(text: str) -> tuple[str, int | None] | None:
    """`math@3` as ("math", 3), `math` as ("math", None), and None for what names no published adapter."""
    name, at, version = text.partition("@")
    if not is_name(name) or (at and not _VERSION.fullmatch(version)):
        return None
    return name, int(version) if at else None


def adapter_versions(folder: Path) -> list[int]:
    """The versions in the folder of one adapter name, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if _VERSION.fullmatch(p.name) and p.is_dir())


def published_adapters(root: Path) -> Iterator[Path]:
    """The folders `NAME/VERSION` under `root`, by name and version. Raises AdapterError when `root` is no folder."""
    if not root.is_dir():
        raise AdapterError(f"{root}: no such folder")
    for folder in sorted(root.iterdir()):
        if is_name(folder.name):
            yield from (folder / str(version) for version in adapter_versions(folder))


def find_adapter(path: Path) -> Path:
    """The folder that `path` means: itself, `NAME/VERSION` for `NAME@VERSION`, the latest version for `NAME`.

    Raises:
        AdapterError: there is no such folder, or no version in it.
    """
    name, at, version = path.name.rpartition("@")
    if at and is_name(name) and not path.is_dir():
        path = path.with_name(name) / version if _VERSION.fullmatch(version) else path
    if not path.is_dir():
        known = adapter_versions(path.parent) if _VERSION.fullmatch(path.name) else []
        raise AdapterError(f"adapter {path}: no such folder{f'; there are versions {known}' if known else ''}")
    if not (path / WEIGHTS).exists() and (versions := adapter_versions(path)):
        return path / str(versions[-1])
    return path


def open_adapter(path: Path, model: str, *, base: Path | None = None) -> AdapterFiles:
    """Check an adapter folder; its weights are looked at, not loaded.

    Args:
        path: `NAME/VERSION`, `NAME@VERSION`, `NAME` for its latest version, or a folder that PEFT saved.
        model: name of the base model it is to run on.
        base: folder of that model; given, its weights are compared with those the adapter was trained on.

    Raises:
        AdapterError: a file is missing, broken or lies elsewhere, weights are pickled, not finite or of no LoRA, the
            configuration asks for what is not served, or it is made for another base model.
    """
    path = find_adapter(path)
    _check_files(path)
    _check_config(read_config(path), path)
    _check_weights(path / WEIGHTS)
    card = read_card(path) if (path / CARD).exists() else None
    if card is None:
        return AdapterFiles(path.name, path)
    _check_base(card, path, model, base)
    return AdapterFiles(f"{card['name']}@{card['version']}", path)


def read_config(path: Path) -> dict[str, object]:
    """PEFT's configuration of the adapter in folder `path`. Raises AdapterError."""
    return _read_json(path / CONFIG)


def adapter_sha256(path: Path) -> str:
    """SHA-256 of all that decides what the adapter in folder `path` does: its weights, and its configuration's part.

    Raises:
        AdapterError: its configuration cannot be read.
        OSError, ValueError: as `weights_sha256`.
    """
    config = {name: value for name, value in read_config(path).items() if name not in _WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps([weights_sha256(path), config], sort_keys=True).encode()).hexdigest()


def read_card(path: Path) -> dict[str, object]:
    """What a published adapter says of itself; only `name`, `version` and `base_model` are checked.

    Raises:
        AdapterError: there is no card, or it is broken.
    """
    card = _read_json(path / CARD)
    for field, (pattern, example) in _CARD_FIELDS.items():
        value = card.get(field)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise AdapterError(f"{path / CARD}: {field} must be a text like {example!r}, not {value!r:.100}")
    return card


def _check_config(config: dict[str, object], path: Path) -> None:
    """Refuse what is no plain LoRA.

    Options are accepted by name, since new ones appear with every release of PEFT: some replace other weights of the
    model, read files or import modules, and some are regular expressions. Raises AdapterError.
    """
    where = f"adapter {path}: {CONFIG}"
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{where} has peft_type {config.get('peft_type')!r:.100}, only LORA is served")
    if refused := sorted(name for name, value in config.items() if value and name not in _SERVED):
        raise AdapterError(f"{where} sets {', '.join(refused[:5])!r:.200}, and only plain LoRA is served")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{where} has bias {config['bias']!r:.100}; only weights are served, not biases")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise AdapterError(f"{where} has init_lora_weights {config['init_lora_weights']!r:.100}, which alters the base")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"{where} has rank r {rank!r:.100}; it must be an integer from 1 to {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterError(f"{where} has lora_alpha {alpha!r:.100}; it must be a positive number")
    named = isinstance(targets, list) and targets and all(isinstance(t, str) and _MODULE.fullmatch(t) for t in targets)
    if not named and targets != "all-linear":
        raise AdapterError(
            f"{where} has target_modules {targets!r:.100}; it must be a list of module names, or 'all-linear'"
        )


def _check_files(path: Path) -> None:
    if not (path / WEIGHTS).is_file():
        pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLED)
        hint = f"; pickled weights ({', '.join(pickled)}) are refused, save it as safetensors" if pickled else ""
        raise AdapterError(f"adapter {path}: {WEIGHTS} is missing{hint}")
    for file in (path / WEIGHTS, path / CONFIG, path / CARD):
        if file.is_symlink() and file.resolve().parent != path.resolve():
            raise AdapterError(f"{file} is a link that leaves the adapter's folder; copy the file instead")


def _check_weights(file: Path) -> None:
    try:
        tensors = read_tensors(file)
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter weights cannot be read: {error}") from error
    if not tensors:
        raise AdapterError(f"{file} holds no tensors")
    for tensor in tensors:
        if not _TENSOR.fullmatch(tensor.name):
            raise AdapterError(
                f"{file}: {tensor.name!r:.200} is no weight of a LoRA; only lora_A and lora_B are served"
            )
        if not tensor.is_finite:
            raise AdapterError(f"{file}: {tensor.name} holds NaN or infinities, or is no bfloat16, float16 or float32")


def _check_base(card: dict[str, object], path: Path, model: str, base: Path | None) -> None:
    trained_on, weights = card["base_model"], card.get("base_revision")
    if trained_on != model:
        raise AdapterError(
            f"adapter {path} was trained on {trained_on}, the engine runs {model}; pass --model {trained_on}"
        )
    if base is None or weights is None:
        return
    try:
        found = remembered_sha256(base)
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {path}: the base model's weights cannot be compared: {error}") from error
    if found != weights:
        raise AdapterError(
            f"adapter {path} was trained on other weights of {model}: their SHA-256 is {weights!r:.80}, that of {base} "
            f"is {found}; load the model it was trained on, or train an adapter on this one"
        )


def _read_json(file: Path) -> dict[str, object]:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise AdapterError(f"{file} is larger than {_MAX_JSON_BYTES} bytes; it does not describe an adapter")
        value = parse_json(file.read_text(encoding="utf-8"))
        check_json_value(value)
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}") from error
    except JsonValueError as error:
        raise AdapterError(f"{file} is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise AdapterError(f"{file} is not UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{file} must hold a JSON object")
    return value
