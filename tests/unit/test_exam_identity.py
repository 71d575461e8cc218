"""What tells one model from another, and what rounding does to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from agent.models import ModelFiles, tokenizer_sha256
from tests.tiny_chat import CHATML, write_tiny_model
from trainer.exam.identity import identity_of, rounding_note


def test_a_model_is_told_by_its_weights_and_by_how_it_reads_text(tmp_path: Path) -> None:
    one, same, other = (write_tiny_model(tmp_path / name) for name in ("one", "same", "other"))
    (other / "chat_template.jinja").write_text(f"{CHATML} ")
    found = [identity_of(ModelFiles("tiny", folder, None)) for folder in (one, same, other)]
    assert found[0] == found[1]
    assert found[0].weights_sha256 == found[2].weights_sha256
    assert found[0].tokenizer_sha256 != found[2].tokenizer_sha256
    (one / "README.md").write_text("no part of it")
    assert tokenizer_sha256(one) == found[1].tokenizer_sha256


@pytest.mark.parametrize(
    ("weights", "dtype", "said"),
    [
        ([1.0, 0.5, 1.0001, 1.0002], "bfloat16", "50% of the weights stored in float32"),
        ([1.0, 0.5, 1.0001, 1.0002], "float32", None),
        ([1.0, 0.5, 1.5, 2.0], "bfloat16", None),
    ],
)
def test_weights_that_are_rounded_for_an_exam_are_said(
    tmp_path: Path, weights: list[float], dtype: str, said: str | None
) -> None:
    save_file({"a": torch.tensor(weights), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    found = rounding_note(tmp_path, dtype)
    assert found is None if said is None else found is not None and said in found
