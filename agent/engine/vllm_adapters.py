"""Whether vLLM can serve an adapter, decided from the headers of its weights before vLLM sees it.

vLLM copies a LoRA into larger buffers and scales it by the rank in its configuration, whatever rank its weights have:
one whose shapes are not as they should be would be served with other numbers than it was trained with.
Not here: what holds for every engine (`agent.adapters`).
"""

from __future__ import annotations

from pathlib import Path

from agent.adapters import CONFIG, WEIGHTS, read_config
from agent.exceptions import AdapterError
from agent.weights import model_tensors, read_tensors

_PREFIX = "base_model.model."
_FLOATS = {"BF16", "F16", "F32"}


class BaseWeights:
    """The layers of a base model that adapters may change: the linear ones of its blocks.

    Embeddings and the output head are left out: with an adapter on the head, vLLM cannot return the log-probabilities
    of a prompt (vllm-project/vllm#16668).

    Args:
        path: folder of the model, with safetensors.
        max_rank: largest rank that vLLM has room for.
    """

    def __init__(self, path: Path, max_rank: int) -> None:
        self._max_rank = max_rank
        # By name of the layer, (outputs, inputs); None for a quantised one, which keeps its weight in other shapes.
        self._layers: dict[str, tuple[int, ...] | None] = {}
        for tensor in model_tensors(path):
            layer, _, part = tensor.name.rpartition(".")
            if len(tensor.shape) != 2 or not any(element.isdigit() for element in layer.split(".")):
                continue
            if part == "weight" and tensor.dtype in _FLOATS:
                self._layers[layer] = tensor.shape
            else:
                self._layers.setdefault(layer, None)

    @property
    def layer_kinds(self) -> list[str]:
        """Last elements of the layers' names: `q_proj`, `down_proj`."""
        return sorted({layer.rpartition(".")[2] for layer in self._layers})

    def check_fits(self, name: str, path: Path) -> None:
        """Check the rank of an adapter, and the shape of each of its tensors.

        Raises:
            AdapterError: it cannot be read, its rank is too large or not that of its weights, or it is for layers that
                adapters may not change, that the base model has not, or has in another size.
        """
        rank = read_config(path).get("r")
        if not isinstance(rank, int) or not 1 <= rank <= self._max_rank:
            raise AdapterError(
                f"adapter {name}: {path / CONFIG} has rank r {rank!r:.100}, the engine has room for {self._max_rank}; "
                "raise engine.vllm.max_lora_rank"
            )
        try:
            tensors = read_tensors(path / WEIGHTS)
        except (OSError, ValueError) as error:
            raise AdapterError(f"adapter {name} cannot be read: {error}") from error
        for tensor in tensors:
            if problem := self._problem(tensor.name, tensor.shape, rank):
                raise AdapterError(f"adapter {name} in {path} does not fit the model: {tensor.name} {problem}")

    def _problem(self, tensor: str, shape: tuple[int, ...], rank: int) -> str | None:
        """Why this tensor of an adapter cannot be served, None when it can."""
        layer, _, side = tensor.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if layer not in self._layers:
            return "belongs to no linear layer in the blocks of the base model"
        base = self._layers[layer]
        if base is None:
            return None
        outputs, inputs = base
        expected = (rank, inputs) if side == "lora_A" else (outputs, rank)
        return None if shape == expected else f"has shape {list(shape)}, expected {list(expected)}"
