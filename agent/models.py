"""Finding a base model on this machine, or fetching it once: embedded, a local folder, or a pinned hub id.

Covers what may be loaded at all (safetensors, a chat template, no remote code). Not here: how the
embedded model is made (`agent.embedded`), and loading weights (`agent.engine`). Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.embedded import EMBEDDED_NAME, Progress, ensure_embedded
from agent.exceptions import ModelError, ModelFetchError
from agent.settings import ModelSettings

# Suffixes of pickled weights, which can run code when they are opened.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken"]
# Files that decide which tokens the model reads for a text, with the chat template where it has a file of its own.
_TEXT_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.tiktoken", "*.jinja")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A base model on disk, checked.

    Attributes:
        name: as recorded in output rows: `smollm2-135m`, the folder's name, or the hub id.
        path: folder with config, tokenizer, chat template and safetensors.
        revision: commit of a hub id, None otherwise.
    """

    name: str
    path: Path
    revision: str | None


def home() -> Path:
    """Where fetched models live: `$REWRIGHT_HOME`, or `~/.cache/rewright`."""
    return Path(os.environ.get("REWRIGHT_HOME") or Path.home() / ".cache" / "rewright").expanduser().absolute()


def resolve_model(settings: ModelSettings, *, on_progress: Progress | None = None) -> ModelFiles:
    """The files of the model that `settings` name, fetched if need be.

    Args:
        settings: name and, for a hub id, the commit.
        on_progress: called with a stage (`download`, `convert`), the part done and the whole.

    Raises:
        ModelError: not found, not reachable, or not allowed.
    """
    name = settings.name
    if name == EMBEDDED_NAME:
        files = ModelFiles(name, ensure_embedded(home() / "models", on_progress), None)
    elif name and (folder := Path(name).expanduser().resolve()).is_dir():
        files = ModelFiles(folder.name, folder, None)
    elif _HUB_ID.fullmatch(name):
        files = _fetch_from_hub(name, settings.revision)
    else:
        raise ModelError(f"model {name!r} is neither {EMBEDDED_NAME!r}, nor a folder here, nor a hub id (owner/name)")
    _check_folder(files.path)
    if files.revision is None:  # the hub's own cache is made of links
        _refuse_escaping_links(files.path)
    return files


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 over the files of the tokenizer and of the chat template, by name."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _TEXT_FILES for file in folder.glob(pattern) if file.is_file()}):
        digest.update(f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def fetched_models() -> Iterator[ModelFiles]:
    """The models that are already under `home()`."""
    if (embedded := home() / "models" / EMBEDDED_NAME).is_dir():
        yield ModelFiles(EMBEDDED_NAME, embedded, None)
    for snapshot in sorted((home() / "hub").glob("models--*--*/snapshots/*")):
        name = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        yield ModelFiles(name, snapshot, snapshot.name)


def _fetch_from_hub(name: str, revision: str | None) -> ModelFiles:
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ModelError(
            f"model {name!r} is no folder here, and as a hub id it needs a pinned revision: "
            f"the 40 hexadecimal digits of a commit, got {revision!r} (--revision, or model.revision)"
        )
    from httpx import HTTPError
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            name,
            revision=revision,
            cache_dir=home() / "hub",
            allow_patterns=_HUB_FILES,
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        wanted = f"model {name!r} at {revision[:12]}"
        raise ModelFetchError(f"{wanted} could not be fetched from the hub: {reason}") from error
    return ModelFiles(name, Path(path), revision)


def _check_folder(folder: Path) -> None:
    """Refuse what cannot, or must not, be loaded. Raises ModelError."""
    if "auto_map" in _read_json(folder / "config.json"):
        raise ModelError(f"{folder}/config.json asks for code of its own (auto_map); such models are not supported")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise ModelError(
                f"{folder} has only pickled weights ({', '.join(pickled[:3])}), which can run code when opened; "
                "convert them to safetensors"
            )
        raise ModelError(f"{folder} has no weights: no *.safetensors file")
    tokenizer = _read_json(folder / "tokenizer_config.json")
    if "auto_map" in tokenizer:
        raise ModelError(f"{folder}/tokenizer_config.json asks for code of its own (auto_map), which is not supported")
    if not (folder / "chat_template.jinja").is_file() and not tokenizer.get("chat_template"):
        raise ModelError(
            f"{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): "
            "use an instruct model"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file.parent} is no model folder: {file.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must hold a JSON object, not a {type(content).__name__}")
    return content


def _refuse_escaping_links(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_symlink() and not file.resolve().is_relative_to(folder):
            raise ModelError(f"{file} is a link that leaves the model's folder; copy the file instead")
