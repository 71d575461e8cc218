"""Sentence embeddings by the real model, and the text check on top."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from agent.demonstrations import Demonstration, Message
from agent.embeddings import Embedder
from agent.exceptions import ModelError
from agent.gate import Gate
from agent.settings import GateSettings

NAME = GateSettings().text_model


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(NAME, batch_size=2)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    spec = importlib.util.find_spec(NAME.replace("-", "_"))
    assert spec is not None
    assert spec.origin is not None
    return shutil.copytree(Path(spec.origin).parent / "model", tmp_path / "model")


def test_rows_are_unit_vectors_in_the_order_of_the_texts(embedder: Embedder) -> None:
    texts = ["a cat sleeps", "the stock market fell", "a cat is sleeping", ""]
    rows = embedder.embed(texts)
    assert rows.shape == (4, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(rows[1], embedder.embed([texts[1]])[0], atol=1e-5)
    assert rows[0] @ rows[2] > 0.8 > 0.3 > rows[0] @ rows[1]


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 384)


def test_a_long_text_is_embedded_to_its_end(embedder: Embedder) -> None:
    cats = "The cat sleeps on the warm windowsill all day. " * 40
    stocks = "The stock market fell sharply after the report. " * 40
    both, cats_only, stocks_only = embedder.embed([cats + stocks, cats, stocks])
    assert both @ stocks_only > 0.5
    assert both @ cats_only < 0.9
    assert np.linalg.norm(both) == pytest.approx(1.0, abs=1e-5)


def test_a_local_folder_gives_the_same_vectors(embedder: Embedder, model_folder: Path) -> None:
    ours = Embedder(str(model_folder)).embed(["a cat sleeps"])
    np.testing.assert_allclose(ours, embedder.embed(["a cat sleeps"]), atol=1e-5)


def test_pickled_weights_are_refused(model_folder: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="pickled"):
        Embedder(str(model_folder))


def test_weights_that_are_cut_off_are_an_error(model_folder: Path) -> None:
    (weights,) = model_folder.rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        Embedder(str(model_folder))


def test_a_folder_that_is_no_embedding_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"modules\.json"):
        Embedder(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(model_folder: Path) -> None:
    modules = '[{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]'
    (model_folder / "modules.json").write_text(modules)
    (model_folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError):
        Embedder(str(model_folder))


@pytest.mark.parametrize("name", ["no-such-model", "owner/name", "../secret", "owner/name@main"])
def test_a_name_that_is_nothing_here_is_an_error(name: str) -> None:
    with pytest.raises(ModelError, match="no installed package"):
        Embedder(name)


async def test_the_text_check_accepts_a_paraphrase_and_rejects_another_subject() -> None:
    row = Demonstration(
        "a",
        (Message("user", "Why is the sky blue?"),),
        "Air molecules scatter short wavelengths of sunlight more strongly than long ones, so blue light reaches us.",
    )
    gate = Gate(GateSettings())
    same = "Sunlight is scattered by air molecules, short wavelengths most of all, and so blue light reaches our eyes."
    other = "The train to the airport leaves every twenty minutes from platform four of the central station."
    verdicts = [await gate.check(row, text) for text in (same, other)]
    await gate.aclose()
    assert [v.passed for v in verdicts] == [True, False]
    assert verdicts[1].failed_check is not None
    assert verdicts[1].failed_check.name == "text"
