"""Writing the fine-tuned model: safetensors, tokenizer, `sft.json` and a model card, visible only when whole.

`OUT` is a model folder that `agent.models` loads; with LoRA the adapter alone is in `OUT/adapter`. `OUT/training`
holds what a resumed run needs and is not part of the model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from agent.adapters import CONFIG, read_config
from agent.disk import sync, sync_tree
from trainer.exceptions import PublishError
from trainer.publish import DataOfTraining, creation_time, package_versions, portable_config

CARD = "sft.json"
ADAPTER = "adapter"
README = "README.md"

_UNFINISHED = ".unfinished-"

# Without its configuration a folder is no model, and without its card it is not known to be whole: these come last.
_LAST = ("config.json", CARD)


@dataclass(frozen=True, slots=True)
class SftCard:
    """What `sft.json` says of a fine-tuned model.

    Attributes:
        name: of the model; the folder's name.
        base_model: name of the base model, as in records.
        base_revision: `weights_sha256` of the base model's folder.
        statuses: rows of each status.
        left_out: rows that were not trained on, by reason.
        tokens: of the data: `prompt`, `completion`, and of these `without_weight`.
        trained_tokens: completion tokens over all updates.
        steps: updates.
        seconds: of all updates together, without loading, weighing and measuring.
        initial_loss, final_loss: mean surprisal before the first and after the last update, nats per token, over all
            completion tokens of `loss_rows` rows, without weights.
        notes: what a person should know of the data.
        settings: resolved settings.
        versions: of the packages and of Python.
        created: ISO 8601, UTC.
    """

    name: str
    base_model: str
    base_revision: str
    data: DataOfTraining
    statuses: Mapping[str, int]
    left_out: Mapping[str, int]
    tokens: Mapping[str, int]
    trained_tokens: int
    steps: int
    seconds: float
    loss_rows: int
    initial_loss: float
    final_loss: float
    notes: list[str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=package_versions)
    created: str = field(default_factory=creation_time)

    def as_dict(self) -> dict[str, Any]:
        """The content of `sft.json`."""
        shares = {status: count / self.data.rows for status, count in self.statuses.items()}
        return asdict(self) | {"shares": shares}


def write_model(model: Any, tokenizer: PreTrainedTokenizerBase, output: Path, card: SftCard) -> None:
    """Write a trained model into `output`, in place of an earlier one of the same training.

    Weights are written in float32: what an update changed is often less than bfloat16 can tell.

    Args:
        model: with an adapter or without; after this it is merged and of no further use.
        tokenizer: of the base model.
        output: a folder that is there.
        card: its settings say whether the adapter is merged.

    Raises:
        PublishError: the folder cannot be written, or the weights are not finite.
    """
    sft = card.settings["sft"]
    try:
        for leftover in output.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=output) as unfinished:
            folder = Path(unfinished)
            if sft["method"] == "lora":
                model.save_pretrained(folder / ADAPTER)
                _make_portable(folder / ADAPTER, card.base_model)
            if sft["method"] == "full" or sft["merge"]:
                whole = model.float()
                if sft["method"] == "lora":
                    whole = whole.merge_and_unload(safe_merge=True)
                whole.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            (folder / README).write_text(model_card(card), encoding="utf-8")
            text = json.dumps(card.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            (folder / CARD).write_text(f"{text}\n", encoding="utf-8")
            _move(folder, output)
    except OSError as error:
        raise PublishError(f"{output}: the model cannot be written: {error}; --resume writes it when it can") from error
    except ValueError as error:  # PEFT, of weights that are not finite
        raise PublishError(f"{output}: the model is not written: {error}") from error


def _make_portable(folder: Path, base_model: str) -> None:
    """Leave what serving reads; PEFT notes the folder of the base model, and writes a card of its own."""
    (folder / README).unlink(missing_ok=True)
    config = portable_config(read_config(folder), base_model)
    (folder / CONFIG).write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8")


def _move(folder: Path, output: Path) -> None:
    for name in reversed(_LAST):
        (output / name).unlink(missing_ok=True)
    sync_tree(folder)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name in _LAST, path.name == CARD, path.name)):
        if path.is_dir():
            shutil.rmtree(output / path.name, ignore_errors=True)
        os.replace(path, output / path.name)
    sync(output)


def model_card(card: SftCard) -> str:
    """The model card as Markdown, with the metadata block that the hub reads."""
    sft = card.settings["sft"]
    merged = sft["method"] == "full" or sft["merge"]
    shares = card.as_dict()["shares"]
    rows = [f"| {status} | {card.statuses[status]} | {share:.1%} |" for status, share in sorted(shares.items())]
    facts = {
        "base model": f"`{card.base_model}`, weights SHA-256 `{card.base_revision}`",
        "data": f"`{card.data.file}`, {card.data.rows} rows, content SHA-256 `{card.data.sha256}`",
        "method": f"LoRA, rank {sft['lora']['rank']}" if sft["method"] == "lora" else "full fine-tuning",
        "loss": f"{sft['loss']}, on completion tokens and the end-of-turn token alone",
        "token weights": _told_weights(sft["weights"], card.tokens),
        "KL to the base model": f"{sft['kl_weight']}" if sft["kl_weight"] else "none",
        "learning rate": f"{sft['learning_rate']}, {sft['schedule']}",
        "updates": f"{card.steps}, {card.trained_tokens} completion tokens",
        "loss before the first update": f"{card.initial_loss:.4f} nats/token ({card.loss_rows} rows)",
        "loss after the last update": f"{card.final_loss:.4f} nats/token (the same rows)",
    }
    left_out = [f"- {count} left out: {reason}" for reason, count in card.left_out.items()]
    return "\n".join(
        [
            "---",
            f"library_name: {'transformers' if merged else 'peft'}",
            f"base_model: {json.dumps(card.base_model)}",
            "tags:",
            "- rewright",
            "- sft",
            "---",
            "",
            f"# {card.name}",
            "",
            "Fine-tuned with `rewright sft`." + ("" if merged else " The adapter alone, in `adapter`."),
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            "| rows | number | share |",
            "|---|---|---|",
            *rows,
            *(["", *left_out] if left_out else []),
            "",
            "All settings and figures are in `sft.json`.",
            "",
        ]
    )


def _told_weights(weights: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    if weights["kind"] == "none":
        return "none"
    scope = "rows in the expert's words" if weights["apply_to"] == "fallback" else "all rows"
    threshold = f" (perplexity over {weights['mask_perplexity']})" if weights["kind"] == "mask" else ""
    dropped = f"{tokens['without_weight']} of {tokens['completion']} tokens dropped"
    return f"`{weights['kind']}`{threshold} on {scope}; {dropped}"
