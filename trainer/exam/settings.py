"""Settings of an exam: plain validated data; where values come from is the caller's business."""

from __future__ import annotations

from pydantic import Field

from agent.settings import Section


class EvaluateSettings(Section):
    """How answers are drawn, and how much is measured."""

    samples: int = Field(0, ge=0, le=64, description="sampled answers of a question beside the greedy one, avg@n")
    temperature: float = Field(0.7, gt=0, le=10, description="of the sampled answers")
    top_p: float = Field(1.0, gt=0, le=1, description="of the sampled answers")
    max_tokens: int = Field(512, ge=1, description="tokens of an answer at most")
    kl_rows: int = Field(64, ge=1, description="questions a task whose prompts the divergence is measured on")
    kl_samples: int = Field(1, ge=1, le=64, description="completions of such a prompt, drawn from the base model")
    kl_max_tokens: int = Field(256, ge=1, description="tokens of such a completion at most")
    window: int = Field(
        2048, ge=16, description="tokens of a rolling window, WikiText; fewer if the context is smaller"
    )
    ifeval_max_tokens: int = Field(1280, ge=1, description="tokens of an IFEval response; lm-eval's own is 1280")
    seed: int = Field(0, description="of the rows that a limit leaves, and of the draws")
    concurrency: int = Field(256, ge=1, description="requests that the engine holds at the same time")
