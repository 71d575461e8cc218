"""What travels to a cluster: the request, the command, the environment."""

from __future__ import annotations

import os
import re
import signal
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.settings import EngineSettings, ModelSettings, RewriteSettings
from trainer.exceptions import DivergedError, JobError, PublishError
from trainer.ray_entry import JOB_VARIABLE, main, read_job
from trainer.ray_jobs import ENTRYPOINT, _Log, follow, job_environment, stop, submit
from trainer.request import SftRequest, TrainingJob, TrainingRequest, WorkerResources
from trainer.settings import TrainSettings
from trainer.sft.settings import SftSettings

NASTY = '/data/it\'s "$(touch /tmp/x)" `id` ${HOME} $PATH\n;&|/ä\\u0024\\$'
NOWHERE = "http://127.0.0.1:9"


def request_of(source: str, **fields: object) -> TrainingRequest:
    return TrainingRequest.model_validate({"source": source, "output": "/adapters/math", **fields})


def expanded_by_ray(value: str) -> str:
    """What Ray makes of the value of an environment variable."""
    return re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


def test_a_request_goes_through_json_unchanged() -> None:
    request = TrainingRequest(
        source=Path(NASTY),
        output=Path("/adapters/math"),
        model=ModelSettings(name="org/model", revision="0" * 40),
        engine=EngineSettings(threads=3),
        rewrite=RewriteSettings(max_tokens=7),
        train=TrainSettings(steps=3, samples=2),
        limit=5,
    )
    assert TrainingRequest.model_validate_json(request.model_dump_json()) == request


def test_a_job_says_itself_what_kind_of_training_it_is() -> None:
    tuning = SftRequest(source=Path("/data/x.jsonl"), output=Path("/models/tuned"), sft=SftSettings(steps=3))
    for request in (tuning, request_of("/data/x.jsonl")):
        job = TrainingJob(request=request)
        assert read_job(job_environment(job)) == job


def test_an_unknown_field_of_a_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="sauce"):
        request_of("/data/x.jsonl", sauce="/data/y.jsonl")


def test_a_request_cannot_be_changed() -> None:
    request = request_of("/data/x.jsonl")
    with pytest.raises(ValidationError, match="frozen"):
        request.limit = 3  # type: ignore[misc]


def test_the_command_holds_nothing_that_a_shell_would_interpret() -> None:
    assert set(ENTRYPOINT) <= set(string.ascii_letters + "._- ")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_whatever_a_path_holds_arrives_as_it_was(text: str) -> None:
    job = TrainingJob(request=request_of("/" + text), resume=True, workers=2)
    environment = {name: expanded_by_ray(value) for name, value in job_environment(job).items()}
    assert read_job(environment) == job


def test_quotes_commands_and_variables_in_a_path_arrive_as_they_were() -> None:
    job = TrainingJob(request=request_of(NASTY))
    text = job_environment(job)[JOB_VARIABLE]
    assert text.isascii()
    assert text.isprintable()
    assert "$" not in text
    assert read_job({JOB_VARIABLE: expanded_by_ray(text)}).request.source == Path(NASTY)


def test_settings_too_long_for_an_environment_variable_are_refused() -> None:
    job = TrainingJob(request=request_of("/" + "x" * 40_000))
    with pytest.raises(JobError, match="at most 32768"):
        job_environment(job)


@pytest.mark.parametrize("source", ["rows.jsonl", "./rows.jsonl", "a/rows.jsonl", "a/b/rows.jsonl"])
def test_a_relative_source_is_refused_before_anything_is_sent(source: str) -> None:
    with pytest.raises(JobError, match=r"source .* must be absolute"):
        submit(NOWHERE, request_of(source))


def test_a_relative_output_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(JobError, match=r"output 'math'.* must be absolute"):
        submit(NOWHERE, request_of("org/dataset").model_copy(update={"output": Path("math")}))


def test_no_setting_of_a_training_names_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    relative: dict[str, dict[str, object]] = {
        r"train\.warm_start\.file 'seed\.jsonl'": {"train": {"warm_start": {"file": "seed.jsonl"}}},
        r"gate\.text_model 'models/mine'": {"gate": {"text_model": "models/mine"}},
        r"model\.name 'models/mine'": {"model": {"name": "models/mine"}},
        r"model\.name 'absent'": {"model": {"name": "./absent"}},
    }
    for said, fields in relative.items():
        with pytest.raises(JobError, match=f"{said}: paths .* must be absolute"):
            submit(NOWHERE, request_of("/data/x.jsonl", **fields))
    names = {"model": {"name": "org/model"}, "gate": {"text_model": f"org/embedder@{'0' * 40}"}}
    with pytest.raises(JobError, match="no Ray dashboard answers"):
        submit(NOWHERE, request_of("/data/x.jsonl", train={"warm_start": {"file": "/data/seed.jsonl"}}, **names))


@pytest.mark.parametrize("job_id", ["", "a b", "../version", "-x", "a/b", "x" * 65, "ü", "a\n"])
def test_a_malformed_job_id_is_refused_before_anything_is_sent(job_id: str) -> None:
    with pytest.raises(JobError, match="job id"):
        submit(NOWHERE, request_of("/data/x.jsonl"), job_id=job_id)
    with pytest.raises(JobError, match="job id"):
        stop(NOWHERE, job_id)


@pytest.mark.parametrize("address", ["head:8265", "os://path", "ray://head:10001", "http://", "auto"])
def test_an_address_that_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(JobError, match="address"):
        stop(address, "job")


def test_a_cluster_that_is_not_there_is_given_up_after_the_patience() -> None:
    with pytest.raises(JobError, match="no Ray dashboard answers at"):
        follow(NOWHERE, "job", print, patience_s=0)


def test_a_log_that_is_sent_again_is_written_once() -> None:
    written: list[str] = []
    log = _Log(written.append)
    for piece in ("one\ntw", "o\n"):
        log.add(piece)
    log.rewind()
    for piece in ("one", "\ntwo\nthr", "ee\n"):
        log.add(piece)
    assert "".join(written) == "one\ntwo\nthree\n"
    assert log.last_lines() == ["one", "two", "three"]


def test_only_the_last_lines_are_kept() -> None:
    log = _Log(lambda _: None)
    log.add("".join(f"{n}\n" for n in range(100)))
    assert log.last_lines() == [str(n) for n in range(80, 100)]


@pytest.fixture
def _handlers_of_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_handlers_of_before")
def test_a_job_started_by_hand_says_what_to_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert main() == 2
    assert "rewright train --ray" in capsys.readouterr().out


@pytest.mark.usefixtures("_handlers_of_before")
@pytest.mark.parametrize(
    ("error", "code"), [(PublishError("the disk is full"), 3), (DivergedError("the loss is nan"), 2)]
)
def test_a_job_ends_with_the_exit_code_of_its_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(_: TrainingJob) -> Path:
        raise error

    job = TrainingJob(request=TrainingRequest(source=Path("/x"), output=Path("/y")))
    monkeypatch.setenv(JOB_VARIABLE, job.model_dump_json())
    monkeypatch.setattr("trainer.ray_entry.run_request", fail)
    assert main() == code


def test_a_job_of_another_version_is_refused() -> None:
    with pytest.raises(JobError, match="same version"):
        read_job({JOB_VARIABLE: '{"request": {"source": "/x", "output": "/y"}, "turbo": true}'})


def test_resources_below_one_core_are_refused() -> None:
    with pytest.raises(ValidationError, match="cpus"):
        WorkerResources(cpus=0)
