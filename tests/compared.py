"""Files of the units of a comparison, as they are when it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.compare.collect import collect
from trainer.compare.finished import EXAM
from trainer.compare.folder import mark_done
from trainer.compare.plan import Inputs, Unit, make_plan
from trainer.compare.results import Comparison
from trainer.compare.settings import CompareRequest, CompareSettings
from trainer.exam.files import samples_path
from trainer.exam.results import EvaluationResult, Measure, ModelIdentity, TaskResult
from trainer.sft.losses import INITIAL, RowLoss, write_losses

BASE, SFT_LOW, SFT_HIGH, MASK_LOW, MASK_HIGH = "base", ("sft", 1e-4), ("sft", 1e-3), ("mask", 1e-4), ("mask", 1e-3)
TASKS = {"sums": "q", "piqa": "p"}
# Of ten questions and ten rows of a benchmark: how many are right.
RIGHT = {BASE: (2, 8), SFT_LOW: (4, 6), SFT_HIGH: (6, 4), MASK_LOW: (4, 8), MASK_HIGH: (7, 5)}


def request(output: Path) -> CompareRequest:
    compare = {
        "train": "train.jsonl",
        "accuracy": {"sums": "questions.jsonl"},
        "retention": ["piqa"],
        "methods": ["sft", "mask"],
        "learning_rates": [1e-4, 1e-3],
        "steps": [2],
        "draws": 200,
    }
    return CompareRequest(output=output, compare=CompareSettings.model_validate(compare))


def write_exam(folder: Path, right: tuple[int, int], *, kl: float | None) -> None:
    """As `rewright evaluate` writes it: ten questions with a greedy and a sampled answer, ten rows of PIQA."""
    samples: list[dict[str, Any]] = []
    for row in range(10):
        strict, lenient = row < right[0], row < right[0] + 2
        samples.append({"task": "sums", "row": f"q{row}", "draw": "greedy", "strict": strict, "lenient": lenient})
        samples.append({"task": "sums", "row": f"q{row}", "draw": 0, "strict": row % 2 == 0, "lenient": True})
        samples.append({"task": "piqa", "row": row, "metrics": {"acc": [float(row < right[1]), 1.0]}})
    figures = {"greedy/strict": right[0] / 10, "greedy/tokens": 31.5, "greedy/no_answer": 0.4, "greedy/cut_off": 0.3}
    shares = {name: Measure(value=value, stderr=None) for name, value in figures.items()}
    tasks = {
        "sums": TaskResult(
            kind="accuracy", data="q", rows=10, metrics=shares, primary="greedy/strict", chat_template=True
        ),
        "piqa": TaskResult(
            kind="retention",
            data="p",
            rows=10,
            metrics={"acc": Measure(value=right[1] / 10, stderr=0.1)},
            primary="acc",
            chat_template=False,
        ),
    }
    if kl is not None:
        tasks["kl:sums"] = TaskResult(
            kind="divergence",
            data="q",
            rows=2,
            metrics={"kl_per_token": Measure(value=kl, stderr=None)},
            primary="kl_per_token",
            higher_is_better=False,
            chat_template=True,
        )
        # Two completions of the first question and one of the second: 40 nats over 160 tokens for a `kl` of 0.25.
        for name, nats, tokens in (("q0", 70 * kl, 50), ("q0", 74 * kl, 70), ("q1", 16 * kl, 40)):
            samples.append({"task": "kl:sums", "row": name, "kl": nats, "tokens": tokens})
    result = EvaluationResult(model=ModelIdentity(name="m", weights_sha256="0"), settings={}, tasks=tasks)
    (folder / EXAM).write_text(result.model_dump_json())
    samples_path(folder / EXAM).write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))


def write_training(folder: Path, weights: str, statuses: dict[str, int]) -> None:
    card = {
        "tokens": {"prompt": 100, "completion": 100, "without_weight": 0},
        "trained_tokens": 40,
        "seconds": 1.5,
        "statuses": statuses,
        "left_out": {"longer than 512 tokens": 2},
        "initial_loss": 1.5,
        "final_loss": 1.0,
        "settings": {"sft": {"weights": {"kind": weights, "apply_to": "all"}, "kl_weight": 0.0}},
    }
    (folder / "sft.json").write_text(json.dumps(card))
    (folder / "training").mkdir()
    history = [{"step": step, "kind": "train", "metrics": {"nll": 1.5 / step}} for step in (1, 2)]
    (folder / "training" / "history.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in history))
    # 1.5 nats a token over both rows; a resample may have the first twice, 1.0, or the second, 2.0.
    losses = [RowLoss("row-1", 20.0, 20), RowLoss("row-2", 40.0, 20)]
    write_losses(folder / "training" / INITIAL, losses[:1] if "rewritten" in statuses else losses)


def write_unit(output: Path, unit: Unit) -> None:
    folder = output / unit.folder
    folder.mkdir(parents=True)
    setup = unit.setup
    if unit.kind == "train":
        assert setup is not None
        statuses = {"rewritten": 1, "self_solved": 2} if setup.method == "rft" else {"expert": 6}
        write_training(folder, "mask" if setup.method == "mask" else "none", statuses)
    else:
        write_exam(folder, RIGHT[(setup.method, setup.learning_rate) if setup else BASE], kl=0.25 if setup else None)
    mark_done(output, unit)


def compared(output: Path) -> Comparison:
    """The results of a comparison of which every unit is done."""
    asked = request(output)
    units = make_plan(asked, Inputs("t", TASKS, {}))
    for unit in units:
        write_unit(output, unit)
    return collect(asked, units, [])
