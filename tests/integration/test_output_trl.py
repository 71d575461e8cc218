"""TRL's SFTTrainer takes an output file as it is, rows of every status in it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from agent.demonstrations import BadRow, Demonstration
from agent.intake import read_rows
from agent.models import ModelFiles
from agent.output import RecordWriter
from agent.records import Proposer, Record, Status, error_row

OUTCOMES: list[tuple[Status, Proposer]] = [("rewritten", "rewrite"), ("self_solved", "solve"), ("fallback", "expert")]
INPUT = [
    {"question": "2+2?", "answer": "4"},
    {"prompt": [{"role": "user", "content": "3+3?"}], "completion": "6"},
    {"messages": [{"role": "user", "content": "4+4?"}, {"role": "assistant", "content": "8"}], "level": 1},
    {"instruction": "Add 5 and 5.", "output": "10", "level": "easy"},
    {"question": "no answer"},
]


@pytest.fixture(params=["out.jsonl", "out.parquet"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An output with a row of every status: unreadable and refused rows are both errors."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in INPUT) + "{\n")
    path = tmp_path / str(request.param)
    with RecordWriter(path, source=source, settings={}) as writer:
        for number, row in enumerate(read_rows(source)):
            if isinstance(row, BadRow):
                writer.write(error_row(row, "m"))
            else:
                writer.write(record(row, number).as_dict())
    return path


def record(row: Demonstration, number: int) -> Record:
    if number < len(OUTCOMES):
        status, proposer = OUTCOMES[number]
        return Record(row, status, proposer, f"It is {row.expert}.", 1, None, None, None, None, "m")
    return Record(row, "error", "expert", row.expert, 0, None, None, None, None, "m", "too long")


def test_two_training_steps(output: Path, model_files: ModelFiles, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(model_files.path)
    builder = {".jsonl": "json", ".parquet": "parquet"}[output.suffix]
    loaded = datasets.load_dataset(builder, data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    trainer = SFTTrainer(
        model=LlamaForCausalLM(config),
        args=SFTConfig(
            output_dir=str(tmp_path / "trained"),
            max_steps=2,
            per_device_train_batch_size=3,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=loaded,
        processing_class=tokenizer,
    )
    targets = [tokenizer.decode([i for i in row["labels"] if i != -100]) for row in trainer.train_dataset]
    assert targets == [
        "It is 4.<|im_end|>\n",
        "It is 6.<|im_end|>\n",
        "It is 8.<|im_end|>\n",
        "10<|im_end|>\n",
        "<|im_end|>\n",
        "<|im_end|>\n",
    ]
    before = [p.detach().clone() for p in trainer.model.parameters()]
    result = trainer.train()
    assert result.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
