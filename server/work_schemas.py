"""Bodies of the routes of files and jobs, as the OpenAPI description shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from server.job_params import EvaluateParams, SftParams, TrainParams
from server.schemas import RequestBody, RewriteOptions

Kind = Literal["rewrite", "train", "sft", "evaluate"]
JobStatus = Literal["validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"]
FileId = Annotated[str, Field(pattern=r"^file_[0-9a-f]{24}$")]


class ProblemBody(BaseModel):
    line: int
    message: str


class FileBody(BaseModel):
    """A file that the service keeps."""

    id: str
    object: Literal["file"]
    purpose: Literal["input", "output", "errors"]
    filename: str
    format: Literal["jsonl", "parquet", "json"]
    bytes: int
    sha256: str
    rows: int
    unreadable_rows: int = Field(description="rows of JSON lines that a job will report as errors")
    problems: list[ProblemBody] = Field(description="the first of those")
    created_at: int = Field(description="seconds since 1970")
    expires_at: int | None = Field(
        description="when it is removed, or once no unfinished job reads it; null where files are kept for ever"
    )


class FileList(BaseModel):
    """Files, newest first."""

    object: Literal["list"]
    data: list[FileBody]
    has_more: bool


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class RewriteJob(RequestBody):
    """Rewrite the rows of a file."""

    kind: Literal["rewrite"]
    input_file: FileId
    params: RewriteOptions = RewriteOptions()


class TrainJob(RequestBody):
    """Train the rewriting agent on the rows of a file, and publish its adapter."""

    kind: Literal["train"]
    input_file: FileId
    params: TrainParams


class SftJob(RequestBody):
    """Fine-tune the base model on the rows of a file."""

    kind: Literal["sft"]
    input_file: FileId
    params: SftParams


class EvaluateJob(RequestBody):
    """Examine a model on the questions of a file, on benchmarks, or on both."""

    kind: Literal["evaluate"]
    input_file: FileId | None = None
    params: EvaluateParams = EvaluateParams()


ClusterJob = TrainJob | SftJob | EvaluateJob
JobRequest = RewriteJob | ClusterJob


class RequestCounts(BaseModel):
    """Rows of a `rewrite` job; all zero for the other kinds."""

    total: int
    completed: int = Field(description="rows with a record that is no error")
    failed: int = Field(description="rows with an error record")


class JobBody(BaseModel):
    """A job, in the states of OpenAI's batches."""

    id: str
    object: Literal["job"]
    kind: Kind
    status: JobStatus
    input_file: str | None
    params: dict[str, Any]
    adapter: str | None = Field(
        description="`name@version` that rewrites or is examined, decided when the job was made; of `train`, what it "
        "published; null for none"
    )
    fine_tuned_model: str | None = Field(
        description="of `sft`, the `name@version` that it made; of `evaluate`, that is examined; null for none"
    )
    request_counts: RequestCounts
    output_file: str | None = Field(
        description="of `rewrite`, every row in the order of the input; of the others, their report as JSON"
    )
    error_file: str | None = Field(description="the failed rows again; null where none failed")
    samples_file: str | None = Field(description="of `evaluate`, every answer that was measured; null for the others")
    error: str | None = Field(
        description="why the job as a whole failed; of a completed `evaluate`, which benchmarks could not be run"
    )
    created_at: int = Field(description="seconds since 1970")
    finished_at: int | None
    expires_at: int | None = Field(
        description="when it is forgotten; null before it has ended and where jobs are kept for ever"
    )


class JobList(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"]
    data: list[JobBody]
    has_more: bool
