"""The methods that can be compared, as data: how each makes its rows, and how it trains on them.

A method is a source of rows and a loss; all share everything else: steps, learning rates, LoRA shapes, batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from agent.settings import ProposerName
from trainer.sft.settings import SftSettings, WeightSettings

BASE, REFERENCE = "base", "sft"

WeightKind = Literal["none", "mask", "entropy", "prob"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to fine-tune on expert demonstrations.

    Attributes:
        told: what it is, for a reader of the report.
        proposers: named strategies of the rewriter that are tried in order; none trains on the expert as it is.
        adapter: name under which the settings must give the rewriter's adapter, None for the base model as rewriter.
        own_way: own solutions may go another way than the expert's: the gate's `steps` is off.
        success_only: leave out the rows that fell back to the expert.
        loss, weights, weigh, kl: settings of the fine-tuning; `weigh` says on which rows the weights apply.
    """

    told: str
    proposers: tuple[ProposerName, ...] = ()
    adapter: str | None = None
    own_way: bool = False
    success_only: bool = False
    loss: Literal["nll", "dft"] = "nll"
    weights: WeightKind = "none"
    weigh: Literal["fallback", "all"] = "all"
    kl: bool = False

    @property
    def is_cheap(self) -> bool:
        """Whether it needs no trained rewriter."""
        return self.adapter is None


_REWRITE: tuple[ProposerName, ...] = ("rewrite",)

METHODS: dict[str, Method] = {
    REFERENCE: Method("the expert's own words"),
    "mask": Method("the expert, without tokens that surprise the base model (2501.14315)", weights="mask"),
    "entropy": Method("the expert, tokens weighted by the base model's entropy (2601.02151)", weights="entropy"),
    "prob": Method("the expert, tokens weighted by their probability under the base model", weights="prob"),
    "dft": Method("the expert, each token's loss scaled by its own probability (2508.05629)", loss="dft"),
    "kl": Method("the expert, with a KL term to the base model", kl=True),
    "rft": Method("own solutions that pass the gate, no expert rows", ("solve",), own_way=True, success_only=True),
    "sdft": Method("the expert rewritten by the base model on a prompt; else the expert", proposers=_REWRITE),
    "mind_the_gap": Method(
        "own solution, else one with the answer as hint, else the expert", ("solve", "hint"), own_way=True
    ),
    "gate_only": Method("rewritten by an agent that the gate alone rewarded", _REWRITE, "gate_only"),
    "paper": Method("rewritten by an agent with the reward of 2602.11220", _REWRITE, "paper"),
    "rewright": Method("rewritten by an agent with our reward", _REWRITE, "rewright"),
    "rewright_masked": Method(
        "as rewright, and on rows that stay the expert's without tokens that surprise the base model",
        _REWRITE,
        "rewright",
        weights="mask",
        weigh="fallback",
    ),
}
METHODS |= {
    f"{name}_success_only": replace(METHODS[name], told=f"as {name}, without its fallback rows", success_only=True)
    for name in ("sdft", "mind_the_gap", "gate_only", "paper", "rewright")
}


def unknown_methods(names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are no methods; `base` is one, without a training."""
    return [name for name in names if name != BASE and name not in METHODS]


def sft_settings(
    method: Method,
    common: SftSettings,
    shape: Mapping[str, Any],
    *,
    learning_rate: float,
    steps: int,
    seed: int,
    kl_weight: float,
) -> SftSettings:
    """The settings of one fine-tuning.

    Args:
        method: decides loss, weights and KL term.
        common: everything that all methods share.
        shape: `method` and `lora` of the settings.
        learning_rate, steps, seed: of this fine-tuning.
        kl_weight: of the KL term, where the method has one.
    """
    weights = WeightSettings(
        **common.weights.model_dump() | {"kind": method.weights, "apply_to": method.weigh},
    )
    return common.model_copy(
        update={
            **shape,
            "merge": False,
            "loss": method.loss,
            "weights": weights,
            "kl_weight": kl_weight if method.kl else 0.0,
            "learning_rate": learning_rate,
            "steps": steps,
            "seed": seed,
        }
    )
