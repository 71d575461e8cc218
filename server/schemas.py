"""Bodies of requests and responses, as the OpenAPI description shows them.

Requests are validated with these models. Responses are built from the agent's own records and only
described here; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agent.adapters import MAX_VERSION
from agent.records import Proposer, Status
from agent.settings import MAX_TOKENS

_ROW_DESCRIPTION = (
    "One demonstration: a JSON object with `messages` (last turn assistant), `prompt` and `completion`, "
    "`instruction` and `output`, `conversations`, or `problem`/`question` and `solution`/`answer`; "
    "`id`, `reference_answer` and `task` are optional. One that cannot be read becomes a row with an error "
    "in the answer and does not stop the others."
)


class RequestBody(BaseModel):
    """What clients send: no unknown fields, no coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _as_integer(value: Any) -> Any:
    """JSON knows no difference between 4 and 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = BeforeValidator(_as_integer)


class SamplingBody(RequestBody):
    """Overrides of the service's own sampling; what is left out stays as configured."""

    temperature: Annotated[float, Field(ge=0, le=10, description="of the one attempt; 0 is greedy")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS, description="of one candidate"), Integer] | None = None
    samples: Annotated[int, Field(ge=1, le=64, description="candidates an attempt"), Integer] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63), Integer] | None = None


Demonstrations = Annotated[
    list[Any], Field(min_length=1, json_schema_extra={"items": {"description": _ROW_DESCRIPTION}})
]


class RewriteOptions(RequestBody):
    """How to rewrite; what is left out stays as the service is configured."""

    strategy: str | None = Field(None, max_length=200, description="a strategy of the service; its default if left out")
    adapter: str | None = Field(None, max_length=200, description="`name` for its active version, or `name@version`")
    sampling: SamplingBody = SamplingBody()


class PinnedOptions(RewriteOptions):
    """Options of a job: `adapter` is the version that was meant when it was made, None the base model alone."""


class RewritesBody(RewriteOptions):
    """Demonstrations to rewrite."""

    demonstrations: Demonstrations


class MismatchBody(RequestBody):
    """Demonstrations to score."""

    demonstrations: Demonstrations


class ActivateBody(RequestBody):
    """Which version of an adapter is to be active."""

    version: Annotated[int, Field(ge=1, le=MAX_VERSION), Integer]


class AdapterVersionBody(BaseModel):
    version: int
    base_model: str | None = Field(description="what it was trained on; null where it does not say")
    loaded: bool = Field(description="by every engine")


class AdapterBody(BaseModel):
    """The published versions of one name, ascending."""

    name: str
    active: int | None = Field(description="the version that requests for the name get; null before the first")
    versions: list[AdapterVersionBody]


class AdaptersResponse(BaseModel):
    data: list[AdapterBody]
    default: str | None = Field(description="what requests get that name no adapter")


class ActivateResponse(BaseModel):
    name: str
    active: int
    previous: int | None = Field(description="the version that was active before")


class MessageBody(BaseModel):
    role: str
    content: str


class CheckBody(BaseModel):
    name: str
    passed: bool
    detail: str


class VerdictBody(BaseModel):
    """The gate's decision on the target: every check asked, in order."""

    passed: bool
    checks: list[CheckBody]


class MismatchFigures(BaseModel):
    """Surprisal of a target under the base model."""

    nll: float = Field(description="mean, nats per token")
    p95: float = Field(description="95th percentile over tokens, nats")
    tokens: int = Field(description="tokens scored, the end-of-turn token included")


class MismatchPair(BaseModel):
    expert: MismatchFigures | None = None
    target: MismatchFigures | None = None


class RowErrorBody(BaseModel):
    """Why one demonstration could not be used."""

    line: int | None = Field(None, description="1-based position in the request")
    field: str | None = None
    message: str


class RecordBody(BaseModel):
    """What became of one demonstration; TRL's SFTTrainer reads it as it is."""

    id: str
    prompt: list[MessageBody]
    completion: list[MessageBody]
    status: Status
    proposer: Proposer
    attempts: int
    gate: VerdictBody | None = None
    mismatch: MismatchPair
    adapter: str | None = None
    model: str
    error: RowErrorBody | None = None
    source: dict[str, Any] | None = None


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    scored_tokens: int


class RewritesResponse(BaseModel):
    """As many rows as demonstrations, in their order."""

    data: list[RecordBody]
    usage: UsageBody
    model: str


class TokenBody(BaseModel):
    text: str
    nats: float = Field(description="surprisal of this token")


class SurprisalBody(BaseModel):
    """Surprisal of one expert completion, token by token; `mismatch` is null where `error` says why."""

    id: str
    mismatch: MismatchFigures | None = None
    tokens: list[TokenBody]
    error: RowErrorBody | None = None


class MismatchResponse(BaseModel):
    """As many rows as demonstrations, in their order."""

    data: list[SurprisalBody]
    model: str


class HealthResponse(BaseModel):
    status: Literal["ok"]


class ReadyResponse(BaseModel):
    status: Literal["ready"]
    model: str
    max_length: int = Field(description="context of the model, tokens")
    queue_rows: int = Field(description="demonstrations being worked on")


class ErrorFields(BaseModel):
    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
    ]
    param: str | None = Field(None, description="the field at fault")
    code: str
    line: int | None = Field(None, description="line of the body, where the error has one")


class ErrorResponse(BaseModel):
    error: ErrorFields
