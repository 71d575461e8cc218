"""Versions that jobs made: a folder `NAME/VERSION` each, which appears whole and is never changed.

The same for adapters and for fine-tuned models; only the card in the folder has another name. Not here: what is in
them, which is the trainer's.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from agent.adapters import adapter_versions, is_name, split_version
from agent.versions import claim_version
from server.exceptions import UnknownNameError


def publish(made: Path, root: Path, name: str, card: str, job_id: str) -> int:
    """Make `made` the next version of `root/name`; returns its number. Done again for the same job, it is the same.

    Args:
        made: folder with what a job made; stays as it is. Its files are linked where that is possible.
        root: holds the names; made if it is not there.
        name: of the adapter or the model.
        card: name of the file in `made` that describes it; name, version and job are put in.
        job_id: what made it.

    Raises:
        OSError: nothing can be written there.
        ValueError: the card is no JSON object.
    """
    assert is_name(name)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for number in reversed(adapter_versions(folder)):
        if _read_card(folder / str(number) / card).get("job") == job_id:
            return number
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=folder) as unfinished:
        staged = Path(unfinished) / "version"
        hidden = shutil.ignore_patterns("training", card, ".*")
        shutil.copytree(made, staged, copy_function=_link, ignore=hidden)
        described = json.loads((made / card).read_text(encoding="utf-8"))

        def describe(number: int) -> str:
            told = {**described, "name": name, "version": str(number), "job": job_id}
            return f"{json.dumps(told, indent=2)}\n"

        return claim_version(staged, folder, card, describe)


def require_version(root: Path, asked: str, what: str) -> str:
    """`name@version` of what is published under `root`.

    Args:
        root: holds `NAME/VERSION`.
        asked: `name` for its latest version, or `name@version`.
        what: it is, for the error.

    Raises:
        UnknownNameError: there is none.
    """
    name, version = split_version(asked) or ("", None)
    versions = adapter_versions(root / name) if name else []
    if not versions or version not in (None, *versions):
        raise UnknownNameError(f"there is no {what} {asked!r}", code=f"unknown_{what}", param=f"params.{what}")
    return f"{name}@{version or versions[-1]}"


def version_folder(root: Path, version: str) -> Path:
    """The folder of `name@version`."""
    name, _, number = version.partition("@")
    return root / name / number


def _read_card(file: Path) -> dict[str, Any]:
    """Empty where it is none of ours."""
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
