"""Settings of the service, and what of it must come from the environment: its keys."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from agent.exceptions import SettingsError
from agent.models import home
from agent.settings import Section

DAY_S = 86_400


class LimitSettings(Section):
    """How much a client may ask for."""

    rows: int = Field(256, ge=1, description="demonstrations a request")
    body_bytes: int = Field(8 * 2**20, ge=1024, description="bytes of a request body")
    queue_rows: int = Field(1024, ge=1, description="demonstrations of all requests in the house")
    head_timeout_s: float = Field(
        10.0,
        gt=0,
        description="time to send the head of a request, seconds; without Ray, whose proxy has no such limit",
    )
    body_timeout_s: float = Field(60.0, gt=0, description="time to send a body, seconds")
    request_timeout_s: float = Field(1800.0, gt=0, description="time to answer a request, seconds")
    retry_after_s: int = Field(5, ge=1, description="Retry-After of 429 and 503 answers, seconds")
    requests_per_minute: int | None = Field(None, ge=1, description="requests of one key a minute, None for no limit")
    rows_per_minute: int | None = Field(
        None, ge=1, description="demonstrations of one key a minute, those of jobs apart; None for no limit"
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> LimitSettings:
        for name, room in (("queue_rows", self.queue_rows), ("rows_per_minute", self.rows_per_minute)):
            if room is not None and self.rows > room:
                raise ValueError(f"limits.rows must not exceed limits.{name}, or a full request could never be taken")
        return self


class FileSettings(Section):
    """Uploaded files and the results of jobs."""

    url: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9+.-]*://\S+$",
        description="where they are kept, by a URL of fsspec, as s3://bucket/folder; None for the state folder",
    )
    upload_bytes: int = Field(2 * 2**30, ge=1024, description="bytes of an uploaded file")
    upload_timeout_s: float = Field(3600.0, gt=0, description="time to send a file, seconds")
    uploads: int = Field(4, ge=1, description="files received at the same time")
    parquet_bytes: int = Field(16 * 2**30, ge=1024, description="bytes of an uploaded Parquet file, decompressed")


class JobSettings(Section):
    """Jobs that outlive the process."""

    rows: int = Field(
        16,
        ge=1,
        description="demonstrations of all jobs worked on at the same time; each asks for several sequences at once, "
        "and what engine.max_sequences has beyond them is left to POST /v1/rewrites",
    )
    running: int = Field(4, ge=1, description="jobs worked on at the same time, sharing server.jobs.rows")
    waiting: int = Field(1000, ge=1, description="jobs that are not finished, at most")
    shard_rows: int = Field(100, ge=1, description="rows whose result is made durable together")


class ClusterSettings(Section):
    """Where jobs of the kinds `train`, `sft` and `evaluate` run: a Ray cluster that sees the service's folders."""

    dashboard: str | None = Field(
        None, description="address of its dashboard, http://head:8265; None for a service without such jobs"
    )
    cpus: int = Field(1, ge=1, description="cores that a job reserves")
    gpus: int = Field(0, ge=0, description="GPUs that a job reserves; 0 runs it on the CPU")
    memory_mb: int | None = Field(None, ge=1, description="main memory that a job reserves, MiB; None for none")
    running: int = Field(1, ge=1, description="such jobs at a time")
    attempts: int = Field(3, ge=1, description="starts of a job that the cluster loses, the first one included")
    patience_s: float = Field(3600.0, gt=0, description="time that the cluster may be out of reach, or refuse, seconds")
    models: Path | None = Field(
        None, description="folder of fine-tuned models, NAME/VERSION; None for models/ in the state folder"
    )
    benchmarks: tuple[str, ...] = Field(
        ("hellaswag", "arc_easy", "piqa", "lambada", "wikitext", "ifeval"),
        description="what clients may have evaluated",
    )
    benchmark_data: Path | None = Field(None, description="folder of their files; None fetches them from the hub")

    @field_validator("dashboard")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://\S+", value):
            raise ValueError("is no address of a dashboard, as http://head:8265 is one")
        return value


class RetentionSettings(Section):
    """How long things are kept; None for ever. What an unfinished job needs stays beyond its time."""

    uploads_days: float | None = Field(None, gt=0, description="days that an upload is kept")
    results_days: float | None = Field(None, gt=0, description="days that the output and error files of jobs are kept")
    jobs_days: float | None = Field(None, gt=0, description="days that a job is known after it has ended")
    sweep_s: float = Field(3600.0, gt=0, description="time between two looks for what has expired, seconds")

    @property
    def any(self) -> bool:
        """Whether anything expires."""
        return not (self.uploads_days is None and self.results_days is None and self.jobs_days is None)

    def file_days(self, purpose: str) -> float | None:
        """Of a file, by its purpose."""
        return self.uploads_days if purpose == "input" else self.results_days


def expiry(since: int | None, days: float | None) -> int | None:
    """When something that began to age at `since` expires, in seconds since 1970; None for never, or not yet known."""
    return None if since is None or days is None else since + round(days * DAY_S)


class RaySettings(Section):
    """Where the service runs."""

    address: str | None = Field(None, description="a running Ray cluster, None to start one on this machine")
    object_store_mb: int = Field(128, ge=80, description="object store of a cluster started here, MiB")
    engine_replicas: int = Field(1, ge=1, description="copies of the engine; with engine_max_replicas, the fewest")
    engine_max_replicas: int | None = Field(
        None, ge=1, description="the most copies of the engine: as many run as the load needs; None for a fixed number"
    )
    engine_target_calls: float = Field(
        32.0, gt=0, description="calls in work at one copy that scaling aims at; a demonstration makes several"
    )
    engine_cpus: float = Field(1.0, ge=0, description="CPUs that a copy of the engine reserves")
    engine_gpus: float = Field(0.0, ge=0, description="GPUs that a copy of the engine reserves")
    engine_start_timeout_s: float = Field(1800.0, gt=0, description="time for the engine to load, seconds")
    health_period_s: float = Field(10.0, gt=0, description="time between looks at an engine's health, seconds")
    health_timeout_s: float = Field(120.0, gt=0, description="time an engine may take to prove its health, seconds")

    @model_validator(mode="after")
    def _most_is_not_fewer(self) -> RaySettings:
        if self.engine_max_replicas is not None and self.engine_max_replicas < self.engine_replicas:
            raise ValueError("ray.engine_max_replicas must not be below ray.engine_replicas")
        return self


class ServerSettings(Section):
    """The HTTP service."""

    host: str = Field("127.0.0.1", description="address to bind to; other than loopback only with API keys")
    port: int = Field(8000, ge=1, le=65535)
    drain_timeout_s: float = Field(120.0, ge=0, description="time for requests in flight at shutdown, seconds")
    adapters: Path | None = Field(
        None, description="folder of published adapters, NAME/VERSION, that requests may name; the same on every node"
    )
    loaded_adapters: int = Field(4, ge=1, description="adapters that an engine keeps loaded at most")
    state: str | None = Field(None, description="folder of files, jobs and keys; None for service/ in $REWRIGHT_HOME")
    database: SecretStr | None = Field(
        None, description="postgresql://user:password@host/name for jobs and keys; None for SQLite in the state folder"
    )
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or one JSON object each")
    log_file: Path | None = Field(None, description="file that log lines are appended to, None for stderr")
    traces: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="collector of OpenTelemetry traces, as http://127.0.0.1:4318/v1/traces; None for none",
    )
    limits: LimitSettings = LimitSettings()
    files: FileSettings = FileSettings()
    jobs: JobSettings = JobSettings()
    cluster: ClusterSettings = ClusterSettings()
    retention: RetentionSettings = RetentionSettings()
    ray: RaySettings = RaySettings()

    @property
    def state_folder(self) -> Path:
        """Where files, jobs and keys are kept."""
        return Path(self.state).expanduser().absolute() if self.state else home() / "service"

    @property
    def models_folder(self) -> Path:
        """Where fine-tuned models are kept."""
        return self.cluster.models.absolute() if self.cluster.models else self.state_folder / "models"


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine only. Names other than localhost are not resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_keys_in_public(settings: ServerSettings, *, has_keys: bool) -> None:
    """Refuse to serve others without keys.

    Raises:
        SettingsError: the host is not loopback and there are no keys.
    """
    if not has_keys and not is_loopback(settings.host):
        raise SettingsError(
            f"server.host is {settings.host!r}, which others can reach, and no API keys are set: "
            "make one with `rewright keys create`, or put at least one into the environment variable "
            "REWRIGHT_API_KEYS (comma separated), or bind to 127.0.0.1"
        )
