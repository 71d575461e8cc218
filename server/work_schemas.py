"""Bodies of the routes of files and jobs, as the OpenAPI description shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from server.schemas import RequestBody, RewriteOptions

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
    format: Literal["jsonl", "parquet"]
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


class JobRequest(RequestBody):
    """Work on a file that outlives the connection and the process."""

    kind: Literal["rewrite", "train", "sft", "evaluate"] = Field(description="only `rewrite` is available yet")
    input_file: FileId
    params: RewriteOptions = RewriteOptions()


class RequestCounts(BaseModel):
    total: int = Field(description="rows of the input")
    completed: int = Field(description="rows with a record that is no error")
    failed: int = Field(description="rows with an error record")


class JobBody(BaseModel):
    """A job, in the states of OpenAI's batches."""

    id: str
    object: Literal["job"]
    kind: Literal["rewrite"]
    status: JobStatus
    input_file: str
    params: dict[str, Any]
    request_counts: RequestCounts
    output_file: str | None = Field(description="every row, in the order of the input")
    error_file: str | None = Field(description="the failed rows again; null where none failed")
    error: str | None = Field(description="why the job as a whole failed")
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
