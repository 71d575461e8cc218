"""The adapters of one loaded model, through PEFT: load, drop, and switch between two forward passes."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from safetensors import SafetensorError

from agent.engine.lora_linear import use_lora_linear
from agent.engine.requests import AdapterRequest
from agent.exceptions import AdapterError


class LoraHost:
    """Keeps the LoRAs of `model`; the base model is what runs when none is active.

    Not thread-safe: the engine's thread owns it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self._keys: dict[str, str] = {}
        self._loaded = 0
        self._active: str | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def load(self, request: AdapterRequest) -> None:
        """Raises AdapterError when the weights do not fit the model or the name is taken."""
        if request.name in self._keys:
            raise AdapterError(f"adapter {request.name} is already loaded; a new version needs a new name")
        # PEFT uses the key as a module name, which may not hold dots; and a key is never used twice.
        self._loaded += 1
        key = f"adapter_{self._loaded}"
        try:
            config = use_lora_linear(LoraConfig.from_pretrained(str(request.path)))
            config.inference_mode = True
            # Without the casting: PEFT would keep weights of half precision as float32, to be rounded in every step.
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=key, autocast_adapter_dtype=False)
            else:
                self._peft.add_adapter(key, config, autocast_adapter_dtype=False)
            outcome = self._peft.load_adapter(
                str(request.path),
                key,
                use_safetensors=True,
                local_files_only=True,
                autocast_adapter_dtype=False,
            )
            if outcome.missing_keys or outcome.unexpected_keys:
                raise ValueError(f"{len(outcome.missing_keys)} weights missing, {len(outcome.unexpected_keys)} unknown")
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            if self._peft is not None and key in self._peft.peft_config:
                self._peft.delete_adapter(key)
            raise AdapterError(f"adapter {request.name} in {request.path} does not fit the model: {error}") from error
        finally:
            self._active = "" if self._peft is not None else None
            self.activate(None)
        self._peft.eval()
        self._keys[request.name] = key

    def add_trainable(self, name: str, config: LoraConfig) -> PeftModel:
        """A new adapter that the caller trains; returns the model that carries it.

        Raises:
            AdapterError: adapters are loaded already, or `config` fits no layer of the model.
        """
        if self._peft is not None:
            raise AdapterError("an adapter to train must be the first of its engine")
        try:
            self._peft = PeftModelForCausalLM(self._model, use_lora_linear(config))
        except ValueError as error:
            raise AdapterError(f"no LoRA of this kind fits the model: {error}") from error
        self._keys[name] = "default"
        self._active = name
        return self._peft

    def unload(self, name: str) -> None:
        """Raises AdapterError when `name` is not loaded."""
        if name not in self._keys or self._peft is None:
            raise AdapterError(f"adapter {name} is not loaded")
        key = self._keys.pop(name)
        self.activate(next(iter(self._keys), None))  # PEFT warns when the one that it last switched to goes
        self.activate(None)
        self._peft.delete_adapter(key)

    def activate(self, name: str | None) -> None:
        """Let the next forward passes run with `name`, or with the base model alone."""
        if name == self._active or self._peft is None:
            return
        layers: Any = self._peft.base_model
        if name is None:
            layers.disable_adapter_layers()
        else:
            layers.enable_adapter_layers()
            self._peft.set_adapter(self._keys[name])
        self._active = name
