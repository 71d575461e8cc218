"""Which adapter folders may be opened; their content may come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agent.adapters import adapter_sha256, adapter_versions, find_adapter, open_adapter, published_adapters, read_card
from agent.exceptions import AdapterError
from agent.weights import read_tensors, weights_sha256

MODULE = "base_model.model.model.layers.0.mlp.down_proj"
# As PEFT 0.21 saves it, descriptions and all.
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
    "base_model_name_or_path": "some/folder",
    "bias": "none",
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "mlp.down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
CARD = {"name": "math", "version": "3", "base_model": "tiny"}

Make = Callable[..., Path]


def lora_tensors() -> dict[str, torch.Tensor]:
    return {f"{MODULE}.lora_A.weight": torch.ones(2, 4), f"{MODULE}.lora_B.weight": torch.zeros(4, 2)}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes an adapter folder; keywords change its configuration."""

    def adapter(
        name: str = "noise",
        card: dict[str, Any] | None = None,
        tensors: dict[str, torch.Tensor] | None = None,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_file(lora_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
        if card is not None:
            (folder / "rewright.json").write_text(json.dumps(card))
        return folder

    return adapter


def test_adapters_are_told_apart_by_all_that_decides_what_they_do(make: Make) -> None:
    known = adapter_sha256(make("a"))
    assert adapter_sha256(make("b", peft_version="0.99", base_model_name_or_path="elsewhere")) == known
    others = [make("c", lora_alpha=16), make("d", tensors={n: t + 1 for n, t in lora_tensors().items()})]
    assert len({known, *map(adapter_sha256, others)}) == 3


def test_an_adapter_that_peft_saved_is_named_after_its_folder(make: Make) -> None:
    path = make("noise")
    found = open_adapter(path, "tiny")
    assert (found.name, found.path) == ("noise", path)


def test_a_published_adapter_is_named_by_its_card(make: Make) -> None:
    assert open_adapter(make("somewhere", CARD), "tiny").name == "math@3"


@pytest.mark.parametrize("given", ["math", "math@3", "math/3"])
def test_a_version_is_found_by_name(make: Make, tmp_path: Path, given: str) -> None:
    make("math/1", CARD | {"version": "1"})
    path = make("math/3", CARD)
    assert open_adapter(tmp_path / given, "tiny").path == path


def test_the_latest_version_is_the_highest_number(make: Make, tmp_path: Path) -> None:
    for version in ("2", "10", "9"):
        make(f"math/{version}")
    for other in ("training", "011", ".publishing-x", "11.old", "-12"):
        (tmp_path / "math" / other).mkdir()
    (tmp_path / "math" / "13").touch()
    assert adapter_versions(tmp_path / "math") == [2, 9, 10]
    assert find_adapter(tmp_path / "math") == tmp_path / "math" / "10"


@pytest.mark.parametrize("given", ["math@4", "math/4"])
def test_a_missing_version_is_refused_with_those_there_are(make: Make, tmp_path: Path, given: str) -> None:
    make("math/1")
    make("math/3")
    with pytest.raises(AdapterError, match=r"math/4: no such folder; there are versions \[1, 3\]"):
        find_adapter(tmp_path / given)


@pytest.mark.parametrize("given", ["none", "none@1", "@1", "math@..", "math@0", "math@"])
def test_what_names_no_folder_is_refused(make: Make, tmp_path: Path, given: str) -> None:
    make("math/1")
    with pytest.raises(AdapterError, match="no such folder"):
        find_adapter(tmp_path / given)


def test_published_adapters_are_found_by_name_and_version(make: Make, tmp_path: Path) -> None:
    paths = [make(name) for name in ("chat/2", "chat/11", "math/1")]
    make("unversioned")
    assert list(published_adapters(tmp_path)) == paths


@pytest.mark.parametrize("suffix", ["bin", "pt"])
def test_pickled_weights_are_refused(make: Make, suffix: str) -> None:
    path = make()
    (path / "adapter_model.safetensors").rename(path / f"adapter_model.{suffix}")
    with pytest.raises(AdapterError, match=rf"pickled weights \(adapter_model\.{suffix}\) are refused"):
        open_adapter(path, "tiny")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "rewright.json"])
def test_a_link_out_of_the_folder_is_refused(make: Make, tmp_path: Path, name: str) -> None:
    path = make("noise", CARD)
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(AdapterError, match="link that leaves the adapter's folder"):
        open_adapter(path, "tiny")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type 'IA3', only LORA is served"),
        ("peft_type", None, "peft_type None"),
        ("modules_to_save", ["lm_head"], "sets 'modules_to_save'"),
        ("use_dora", True, "sets 'use_dora'"),
        ("use_qalora", True, "sets 'use_qalora'"),
        ("lora_bias", True, "sets 'lora_bias'"),
        ("fan_in_fan_out", True, "sets 'fan_in_fan_out'"),
        ("layer_replication", [[0, 2]], "sets 'layer_replication'"),
        ("trainable_token_indices", [1], "sets 'trainable_token_indices'"),
        ("megatron_config", {"a": 1}, "sets 'megatron_config'"),
        ("rank_pattern", {"(a+)+$": 4}, "sets 'rank_pattern'"),
        ("exclude_modules", "(a+)+$", "sets 'exclude_modules'"),
        ("an_option_of_tomorrow", 1, "sets 'an_option_of_tomorrow'"),
        ("bias", "all", "bias 'all'"),
        ("init_lora_weights", "pissa", "init_lora_weights 'pissa', which alters the base"),
        ("target_modules", "(a+)+$", r"target_modules '\(a\+\)\+\$'"),
        ("target_modules", [], "target_modules"),
        ("target_modules", None, "target_modules"),
        ("target_modules", ["q_proj", 3], "target_modules"),
        ("target_modules", ["(a+)+$"], "target_modules"),
        ("target_modules", {"q_proj": 1}, "target_modules"),
        ("r", 0, "rank r 0"),
        ("r", 513, "rank r 513; it must be an integer from 1 to 512"),
        ("r", True, "rank r True"),
        ("r", 8.0, "rank r 8.0"),
        ("r", "8", "rank r '8'"),
        ("lora_alpha", 0, "lora_alpha 0"),
        ("lora_alpha", "8", "lora_alpha '8'"),
        ("lora_alpha", True, "lora_alpha True"),
    ],
)
def test_what_is_no_plain_lora_is_refused(make: Make, option: str, value: object, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        open_adapter(make(**{option: value}), "tiny")


@pytest.mark.parametrize(
    ("option", "value"),
    [("target_modules", "all-linear"), ("use_rslora", True), ("lora_alpha", 0.5), ("init_lora_weights", False)],
)
def test_other_ways_of_plain_lora_are_served(make: Make, option: str, value: object) -> None:
    assert open_adapter(make(**{option: value}), "tiny").name == "noise"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"r": NaN}', "is not valid JSON: NaN"),
        ("[" * 100_000, "nested deeper"),
        ("\xff", "is not UTF-8"),
        (" " * (4 << 20) + "{}", "is larger than"),
    ],
)
def test_a_broken_configuration_is_refused(make: Make, content: str, message: str) -> None:
    path = make()
    (path / "adapter_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(AdapterError, match=message):
        open_adapter(path, "tiny")


def test_a_missing_configuration_is_refused(make: Make) -> None:
    path = make()
    (path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read: No such file"):
        open_adapter(path, "tiny")


@pytest.mark.parametrize(
    "name",
    ["base_model.model.lm_head.weight", f"{MODULE}.lora_A.default.weight", f"{MODULE}.lora_magnitude_vector", "x\n"],
)
def test_a_tensor_that_is_no_lora_weight_is_refused(make: Make, name: str) -> None:
    with pytest.raises(AdapterError, match="is no weight of a LoRA"):
        open_adapter(make(tensors=lora_tensors() | {name: torch.ones(2)}), "tiny")


def test_an_adapter_without_tensors_is_refused(make: Make) -> None:
    with pytest.raises(AdapterError, match="holds no tensors"):
        open_adapter(make(tensors={}), "tiny")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_refused(make: Make, dtype: torch.dtype, value: float) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in lora_tensors().items()}
    tensors[f"{MODULE}.lora_B.weight"][3, 1] = value
    with pytest.raises(AdapterError, match=r"lora_B\.weight holds NaN or infinities"):
        open_adapter(make(tensors=tensors), "tiny")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_largest_finite_weights_are_served(make: Make, dtype: torch.dtype) -> None:
    tensors = {name: torch.full_like(t, torch.finfo(dtype).max, dtype=dtype) for name, t in lora_tensors().items()}
    assert open_adapter(make(tensors=tensors), "tiny").name == "noise"


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused(make: Make, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in lora_tensors().items()}
    with pytest.raises(AdapterError, match="or is no bfloat16, float16 or float32"):
        open_adapter(make(tensors=tensors), "tiny")


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_cut_weights_are_refused(make: Make, keep: int) -> None:
    path = make()
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(AdapterError, match="is not a whole safetensors file"):
        open_adapter(path, "tiny")


def test_another_base_model_is_refused_by_name(make: Make) -> None:
    with pytest.raises(AdapterError, match="was trained on tiny, the engine runs other; pass --model tiny"):
        open_adapter(make("math", CARD), "other")


def test_other_weights_of_the_base_model_are_refused(make: Make, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.ones(3)}, base / "model.safetensors")
    path = make("math", CARD | {"base_revision": weights_sha256(base)})
    assert open_adapter(path, "tiny", base=base).name == "math@3"
    save_file({"w": torch.zeros(3)}, base / "model.safetensors")
    with pytest.raises(AdapterError, match="was trained on other weights of tiny: their SHA-256 is"):
        open_adapter(path, "tiny", base=base)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "../math"), ("name", None), ("version", 3), ("version", "latest"), ("base_model", ["tiny"])],
)
def test_a_broken_card_is_refused(make: Make, field: str, value: object) -> None:
    with pytest.raises(AdapterError, match=f"rewright.json: {field} must be a text like"):
        read_card(make("math", CARD | {field: value}))


def test_the_hash_of_weights_does_not_depend_on_how_they_are_stored(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.bfloat16)
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    sharded.mkdir()
    save_file({"a": a, "b": b}, whole / "model.safetensors", metadata={"format": "pt"})
    save_file({"b": b}, sharded / "model-00001-of-00002.safetensors")
    save_file({"a": a}, sharded / "model-00002-of-00002.safetensors")
    assert weights_sha256(whole) == weights_sha256(sharded)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([0.0, 1.0, 2.0, 4.0])},
        {"a": torch.tensor([[0.0, 1.0], [2.0, 3.0]])},
        {"b": torch.tensor([0.0, 1.0, 2.0, 3.0])},
        {"a": torch.tensor([0.0, 1.0, 2.0, 3.0]).view(torch.int32)},
    ],
    ids=["value", "shape", "name", "type"],
)
def test_the_hash_tells_weights_apart(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    hashes = set()
    for tensors in ({"a": torch.tensor([0.0, 1.0, 2.0, 3.0])}, other):
        save_file(tensors, tmp_path / "model.safetensors")
        hashes.add(weights_sha256(tmp_path))
    assert len(hashes) == 2


def test_a_folder_without_weights_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        weights_sha256(tmp_path)


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    save_file({"b": torch.tensor([1, 2], dtype=torch.int16), "a": torch.ones(1, 2)}, tmp_path / "x.safetensors")
    tensors = read_tensors(tmp_path / "x.safetensors")
    assert [(t.name, t.dtype, t.shape) for t in tensors] == [("a", "F32", (1, 2)), ("b", "I16", (2,))]
    assert bytes(tensors[1].data) == b"\x01\x00\x02\x00"
