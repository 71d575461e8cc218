"""What a method spends: tokens and seconds of rewriting, scoring and training, and one figure for all of it.

The one figure is token passes: one token once through the model is 1, in an update 3 (the backward pass costs twice
the forward pass; Kaplan et al., 2001.08361, section 2.1). It is the same on every machine, which seconds are not.
Prompts of a rewriter are counted whole, though engines compute once what they begin with: the worked examples.
Not counted: the prompts of scored texts, which the engine mostly has computed already; exams, which all methods have;
and the training of a rewriter, which is done once for many data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from agent.settings import Section
from trainer.sft.settings import IN_EXPERTS_WORDS

UPDATE_PASSES = 3


class DataCost(Section):
    """What the rows of a method cost; zero for the expert's own."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0

    @property
    def rewriting_passes(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class TrainCost(Section):
    """What one fine-tuning cost."""

    trained_tokens: int = Field(description="completion tokens of all updates: those with a loss")
    processed_tokens: int = Field(description="the same with their prompts")
    weighed_tokens: int = Field(0, description="tokens, prompts included, that the frozen base model was asked about")
    anchored: bool = Field(False, description="whether each update also asks the base model, for a KL term")
    seconds: float = Field(0.0, description="of the updates")

    @property
    def passes(self) -> int:
        return self.processed_tokens * (UPDATE_PASSES + self.anchored)


class Cost(Section):
    """Of one fine-tuning together with its rows."""

    data: DataCost
    training: TrainCost

    @property
    def scoring_passes(self) -> int:
        return self.data.scored_tokens + self.training.weighed_tokens

    @property
    def before_training(self) -> int:
        """Token passes before the first update."""
        return self.data.rewriting_passes + self.scoring_passes

    @property
    def passes(self) -> int:
        """Token passes in all."""
        return self.before_training + self.training.passes


def train_cost(card: Mapping[str, Any]) -> TrainCost:
    """The cost that the card of a fine-tuning, `sft.json`, tells of.

    Args:
        card: its tokens are those of the data; how many prompt tokens the updates saw, and how many without a weight,
            follows from their proportion. With a KL term a token without a weight has a loss all the same.
    """
    tokens, sft = card["tokens"], card["settings"]["sft"]
    in_data = tokens["prompt"] + tokens["completion"]
    weights, statuses = sft["weights"], card["statuses"]
    weighed = 0
    if weights["kind"] != "none":
        own_words = sum(statuses.get(status, 0) for status in IN_EXPERTS_WORDS)
        share = 1.0 if weights["apply_to"] == "all" else own_words / sum(statuses.values())
        weighed = round(share * in_data)
    anchored = sft["kl_weight"] > 0
    with_loss = 1.0 if anchored else 1.0 - tokens["without_weight"] / tokens["completion"]
    return TrainCost(
        trained_tokens=round(with_loss * card["trained_tokens"]),
        processed_tokens=round(card["trained_tokens"] * in_data / tokens["completion"]),
        weighed_tokens=weighed,
        anchored=anchored,
        seconds=card["seconds"],
    )
