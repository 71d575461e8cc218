"""Wrong use of the command line: exit code 2, one clear message, nothing on standard output, no traceback."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from agent.exceptions import ModelFetchError, OutputFailedError
from cli.lines import json_lines
from server.keys import KeyStore
from server.settings import ServerSettings
from server.state import Database
from tests.command_line import run_main
from tests.tiny_chat import tiny_model, write_tiny_model
from trainer.exceptions import DivergedError, JobError, JobFailedError, PublishError, UnreachableError

Run = Callable[..., tuple[int, str, str]]
JOB = ["rewrite", "in.jsonl", "--job", "--url", "http://h", "-o"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `rewright` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "old.jsonl").write_text('{"id": "x"}\n')
    (tmp_path / "text").write_text("question,answer\n1 + 1?,2\n")

    return partial(run_main, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewrit"], "No such command 'rewrit'"),
        (["rewrite"], "Missing argument 'IN'"),
        (["rewrite", "in.jsonl", "--strateg", "x"], "No such option"),
        (["rewrite", "in.jsonl", "--limit", "0"], "Invalid value for '--limit': Input should be greater than"),
        (["rewrite", "in.jsonl", "--limit", "ten"], "Invalid value for '--limit': Input should be a valid integer"),
        (["rewrite", "in.jsonl", "--max-errors", "-1"], "Invalid value for '--max-errors'"),
        (["rewrite", "in.jsonl", "--max-tokens", "0"], "setting rewrite.max_tokens: Input should be greater than"),
        (["rewrite", "in.jsonl", "--max-tokens", "32769"], "setting rewrite.max_tokens: Input should be less than"),
        (["rewrite", "in.jsonl", "--dry-run", "--strategy", "magic"], "unknown strategy 'magic'; known are"),
        (["rewrite", "in.jsonl", "--dry-run", "-o", "in.jsonl"], "in.jsonl: is the input itself"),
        (["mismatch", "in.jsonl", "--dry-run", "-o", "in.jsonl"], "in.jsonl: is the input itself"),
        (["check", "in.jsonl", "--dry-run", "-o", "in.jsonl"], "in.jsonl: is the input itself"),
        (["check", "in.jsonl", "--dry-run", "--task", "maths"], "known tasks are"),
        (["rewrite", "in.jsonl", "--seed", "x"], "Invalid value for '--seed'"),
        (["rewrite", "in.jsonl", "--strategy", "magic"], "unknown strategy 'magic'; known are"),
        (["rewrite", "in.jsonl", "--config", "none.toml"], "--config none.toml: No such file"),
        (["rewrite", "in.jsonl", "--model", "m", "--url", "http://h"], "--model and --url exclude each other"),
        (["rewrite", "in.jsonl", "--revision", "c", "--url", "http://h"], "--revision and --url exclude each other"),
        (["rewrite", "in.jsonl", "--url", "ftp://h"], "is no http address"),
        (["rewrite", "in.jsonl", "--job", "-o", "o.jsonl"], "--job needs a service and an output file"),
        (["rewrite", "in.jsonl", "--job", "--url", "http://h"], "--job needs a service and an output file"),
        ([*JOB, "o.jsonl", "--limit", "3"], "--limit and --job exclude each other"),
        ([*JOB, "o.parquet"], "o.parquet: these rows come as JSON lines: name it .jsonl"),
        ([*JOB, "old.jsonl"], "old.jsonl: exists already"),
        ([*JOB, "old.jsonl", "--resume"], "old.jsonl: cannot be resumed, old.jsonl.run.json is not readable"),
        ([*JOB, "in.jsonl", "--overwrite"], "in.jsonl: is the input itself"),
        ([*JOB, "none/o.jsonl"], "there is no folder"),
        (["rewrite", "-", *JOB[2:], "o.jsonl"], "-: --job sends a file"),
        (["jobs", "submit", "in.jsonl", "--kind", "train", "--params", "{"], "--params is no JSON: "),
        (["jobs", "submit", "in.jsonl", "--kind", "train", "--params", '{"seed": 1e400}'], "--params is no JSON: NaN"),
        (["jobs", "submit", "in.jsonl", "--kind", "train", "--params", "[1]"], "--params is no JSON object, as"),
        (["rewrite", "in.jsonl", "--resume"], "need an output file: -o OUT"),
        (["rewrite", "in.jsonl", "-o", "-", "--json"], "need an output file: -o OUT"),
        (["jobs", "results", "job", "--errors", "--samples"], "exclude each other"),
        (["jobs", "results", "job", "-o", "old.jsonl"], "old.jsonl: exists already"),
        (["jobs", "submit", "in.jsonl", "--kind", "tune"], "--kind 'tune': there are rewrite, train, sft, evaluate"),
        (["jobs", "submit"], "IN is missing: a job of kind rewrite works on a file"),
        (["rewrite", "in.jsonl", "--json"], "need an output file: -o OUT"),
        (["rewrite", "in.jsonl", "-o", "o.jsonl", "--resume", "--overwrite"], "exclude each other"),
        (["rewrite", "none.jsonl", "-o", "o.jsonl"], "none.jsonl: no such file or folder"),
        (["rewrite", "in.jsonl", "-o", "in.jsonl"], "in.jsonl: is the input itself"),
        (["rewrite", "in.jsonl", "-o", "old.jsonl"], "old.jsonl: exists already"),
        (["rewrite", "in.jsonl", "-o", "old.jsonl", "--resume"], "old.jsonl: cannot be resumed"),
        (["rewrite", "in.jsonl", "-o", "none/o.jsonl"], "none/o.jsonl: there is no folder"),
        (["rewrite", "in.jsonl", "-o", "o.jsonl", "--model", "nope"], "model 'nope' is neither"),
        (["rewrite", "in.jsonl", "-o", "o.jsonl", "--model", "a/b"], "it needs a pinned revision"),
        (["compare"], "what to compare and where to put it"),
        (["compare", "-o", "out"], "what to compare and where to put it"),
        (["evaluate"], "what to measure and where to put it"),
        (["evaluate", "m", "--tasks", "piqa", "-o", "o.json", "--limit", "0"], "Invalid value for '--limit'"),
        (["evaluate", "m", "--tasks", "piqa", "-o", "o.json", "--samples", "-1"], "setting evaluate.samples"),
        (["evaluate", "m", "--tasks", "piqa", "-o", "o.json", "--temperature", "0"], "setting evaluate.temperature"),
        (["evaluate", "m", "--tasks", "piqa", "-o", "o.json", "--base-revision", "x"], "needs --base"),
        (["evaluate", "m", "--tasks", "pika", "-o", "o.json"], "unknown task 'pika': known are hellaswag"),
        (["evaluate", "m", "--tasks", "piqa", "-o", "o.json"], "model 'm' is neither"),
        (["evaluate", ".", "--tasks", "piqa", "-o", "none/o.json"], "none/o.json: there is no folder"),
        (["evaluate", ".", "--tasks", "piqa", "-o", "old.jsonl"], "old.jsonl: exists already"),
        (["mismatch", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["mismatch", "in.jsonl", "--plot", "none/p.png"], "none/p.png: there is no folder"),
        (["mismatch", "in.jsonl", "-o", "none/p.jsonl"], "none/p.jsonl: there is no folder"),
        (["mismatch", ".", "-o", "o.jsonl"], "o.jsonl: lies in the input folder"),
        (["rewrite", ".", "-o", "o.jsonl"], "o.jsonl: lies in the input folder"),
        (["mismatch", "in.jsonl", "-o", "-", "--json"], "--json needs an output file for the rows: -o OUT"),
        (["check", "in.jsonl", "--calibrate", "-o", "o.jsonl"], "--calibrate and -o exclude each other"),
        (["check", "in.jsonl", "-o", "."], ".: is a folder: name a file"),
        (["check", ".", "-o", "o.jsonl"], "o.jsonl: lies in the input folder"),
        (["check", "in.jsonl", "-o", "o.parquet"], "o.parquet: these rows come as JSON lines: name it .jsonl"),
        (["mismatch", "in.jsonl", "-o", "o.parquet"], "o.parquet: these rows come as JSON lines: name it .jsonl"),
        (["jobs", "results", "job", "-o", "o.parquet"], "o.parquet: these rows come as JSON lines: name it .jsonl"),
        (["check", "none.csv"], "none.csv: tables of text are not read: save it as JSON lines or Parquet"),
        (["rewrite", "data/none.tsv"], "data/none.tsv: tables of text are not read"),
        (["check", "text"], "text: neither JSON lines, one object a line, nor a JSON array of objects, nor Parquet: "),
        (["check", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["sft", "in.jsonl"], "where to put the model"),
        (["sft", "in.jsonl", "-o", "m", "--method", "qlora"], "setting sft.method: Input should be 'lora' or 'full'"),
        (["sft", "none.jsonl", "-o", "m"], "none.jsonl: no such file or folder"),
        (["sft", "in.jsonl", "-o", "in.jsonl"], "in.jsonl is a file; the model is written to a folder"),
        (["sft", "in.jsonl", "-o", "m", "--resume"], "there is no checkpoint to resume from"),
        (["serve", "--port", "0"], "setting server.port: Input should be greater than or equal to 1"),
        (["serve", "--host", "0.0.0.0"], "no API keys are set"),
        (["keys", "create", "mine", "--expires-days", "36501"], "Input should be less than or equal to 36500"),
        (["models", "pull", "owner/name"], "it needs a pinned revision"),
        (["models", "pull", "owner/name", "--revision", "main"], "it needs a pinned revision"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_explained(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("group", [[], ["models"]], ids=str)
def test_a_missing_command_shows_which_there_are(run: Run, group: list[str]) -> None:
    code, _, err = run(*group)
    assert code == 2
    assert "Commands:" in err


def test_a_wrong_variable_is_wrong_use(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_ENGINE__DTYPE", "int4")
    code, _, err = run("rewrite", "in.jsonl")
    assert code == 2
    assert "from REWRIGHT_ENGINE__DTYPE" in err


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('[{"proposer": "solve", "temperatures": [-1]}]', "strategies.x.0.temperatures.0: Input should be greater"),
        ('[{"proposer": "solve", "temperatures": [0.4, NaN]}]', "strategies.x.0.temperatures.1: Input should be"),
        ("[]", "strategies.x: Tuple should have at least 1 item"),
    ],
)
def test_a_strategy_that_cannot_be_followed_is_wrong_use(
    run: Run, monkeypatch: pytest.MonkeyPatch, steps: str, message: str
) -> None:
    monkeypatch.setenv("REWRIGHT_REWRITE__STRATEGIES__X", steps)
    code, _, err = run("rewrite", "in.jsonl", "--strategy", "x")
    assert code == 2
    assert message in err


def test_rows_come_through_a_named_pipe(run: Run, tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "1+1=2\n#### 2", "candidate": f"1 + 1 = {n}. The answer is {n}."}
        for n in (2, 3)
    ]
    os.mkfifo(tmp_path / "pipe")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    code, out, err = run("check", "pipe")
    writer.join()
    assert code == 0, err
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["passed", "failed"]


def test_the_verdicts_of_before_stay_where_the_task_is_unknown(run: Run, tmp_path: Path) -> None:
    code, _, err = run("check", "in.jsonl", "-o", "old.jsonl", "--task", "maths")
    assert (code, "known tasks are" in err) == (2, True)
    assert (tmp_path / "old.jsonl").read_text() == '{"id": "x"}\n'


@pytest.mark.parametrize("before", ["before", None])
def test_lines_that_break_off_leave_the_file_of_before(tmp_path: Path, before: str | None) -> None:
    output = tmp_path / "o.jsonl"
    if before:
        output.write_text(before)

    def break_off() -> None:
        with json_lines(output) as write:
            write({"id": "a"})
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_lines_go_into_a_named_pipe_as_they_come(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    with json_lines(tmp_path / "pipe") as write:
        write({"id": "a"})
    reader.join()
    assert read == ['{"id": "a"}\n']
    assert (tmp_path / "pipe").is_fifo()


def test_a_run_is_not_resumed_with_a_version_that_was_published_since(run: Run, tmp_path: Path) -> None:
    command = ["rewrite", "in.jsonl", "-o", "o.jsonl", "--model", "nope", "--adapter", "math"]
    for version in ("1", "2"):
        (tmp_path / "math" / version).mkdir(parents=True)
        (tmp_path / "math" / version / "adapter_model.safetensors").touch()
        _, _, err = run(*command, *(["--resume"] if version == "2" else []))
        (tmp_path / "o.jsonl").write_text("{}\n")
    assert json.loads((tmp_path / "o.jsonl.run.json").read_text())["rewrite"]["adapter"] == str(tmp_path / "math" / "1")
    assert "cannot be resumed: rewrite was" in err


def test_an_adapter_of_another_base_model_is_refused_before_the_engine_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("the engine is not to be started")

    monkeypatch.setattr("cli.engine.open_engine", start)
    write_tiny_model(tmp_path / "tiny")
    adapter = tmp_path / "math" / "1"
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(adapter))
    (adapter / "rewright.json").write_text(json.dumps({"name": "math", "version": "1", "base_model": "other"}))
    code, _, err = run("rewrite", "in.jsonl", "-o", "o.jsonl", "--model", "tiny", "--adapter", "math")
    assert code == 2
    assert "math/1 was trained on other, the engine runs tiny; pass --model other" in err


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_training_shows_how_its_model_is_fetched_once_its_output_is_free(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def fetch(_: object, *, on_progress: Callable[[str, int, int], None]) -> None:
        on_progress("download", 0, 10)
        raise ModelFetchError("the hub is away")

    monkeypatch.setattr("cli.engine.resolve_model", fetch)
    code, _, err = run(command, "in.jsonl", "-o", "made")
    assert (code, err) == (3, "download smollm2-135m ... error: the hub is away")
    assert "no checkpoint to resume" in run(command, "in.jsonl", "-o", "other", "--resume")[2]


def test_what_would_be_replaced_stays_where_the_run_cannot_start(run: Run, tmp_path: Path) -> None:
    assert run("rewrite", "in.jsonl", "-o", "old.jsonl", "--overwrite", "--model", "nope")[0] == 2
    assert {path.name: path.read_text() for path in tmp_path.glob("old*")} == {"old.jsonl": '{"id": "x"}\n'}


@pytest.mark.parametrize("text", ["", "\n  \n", "[]"])
def test_a_file_without_rows_is_done_and_said(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    code, out, err = run("check", "rows.json")
    assert (code, out) == (0, "")
    assert "rows.json holds no rows" in err


def test_an_unreachable_service_is_a_failure_not_wrong_use(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.rewrite._PATIENCE_S", 0.0)
    code, _, err = run("rewrite", "in.jsonl", "-o", "o.jsonl", "--url", "http://127.0.0.1:1")
    assert code == 3
    assert "http://127.0.0.1:1 cannot be reached" in err


def test_an_output_that_fails_on_the_way_is_a_failure_not_wrong_use(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutputFailedError("o.jsonl: cannot be written: No space left on device; resume when it can")

    monkeypatch.setattr("cli.rewrite._rewrite_rows", fail)
    code, _, err = run("rewrite", "in.jsonl", "-o", "o.jsonl")
    assert code == 3
    assert "resume when it can" in err


@pytest.mark.parametrize(
    "error",
    [
        PublishError("No space left on device"),
        ModelFetchError("the hub is away"),
        JobFailedError("the machine is gone"),
        UnreachableError("no Ray dashboard answers"),
    ],
)
def test_what_may_pass_by_itself_is_a_failure_not_wrong_use(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cli.rewrite._rewrite_rows", fail)
    assert run("rewrite", "in.jsonl", "-o", "o.jsonl")[0] == 3


def test_a_job_that_would_end_so_again_is_wrong_use(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise JobError("job train FAILED: the loss is no finite number")

    monkeypatch.setattr("cli.rewrite._rewrite_rows", fail)
    assert run("rewrite", "in.jsonl", "-o", "o.jsonl")[0] == 2


def test_settings_that_a_service_does_not_take_are_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cli.rewrite._PATIENCE_S", 0.0)
    step = '{ proposer = "solve", temperatures = [0.7] }'
    (tmp_path / "c.toml").write_text(f"[gate]\nlanguage = false\n[rewrite]\nstrategies.quick = [{step}]\n")
    there = ["--url", "http://127.0.0.1:1"]
    _, _, err = run("rewrite", "in.jsonl", "-o", "o.jsonl", "--config", "c.toml", *there)
    assert "with --url, your settings of gate, rewrite.strategies have no effect" in err
    assert "no effect" not in run("rewrite", "in.jsonl", "-o", "o.jsonl", "--seed", "7", *there)[2]


def test_a_dry_run_prints_the_resolved_settings(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[rewrite]\nmax_tokens = 99\n")
    code, out, _ = run("rewrite", "in.jsonl", "--config", "c.toml", "--seed", "7", "--dry-run")
    rewrite = json.loads(out)["rewrite"]
    assert (code, rewrite["max_tokens"], rewrite["seed"]) == (0, 99, 7)


@pytest.mark.parametrize("command", ["mismatch", "check"])
def test_other_commands_have_a_dry_run_too(run: Run, command: str) -> None:
    code, out, _ = run(command, "in.jsonl", "--dry-run")
    assert (code, json.loads(out)["model"]["name"]) == (0, "smollm2-135m")


def test_models_that_are_there_are_listed_as_json(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path))
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    code, out, _ = run("models", "list", "--json")
    path = str(tmp_path / "models" / "smollm2-135m")
    assert (code, json.loads(out)) == (0, [{"name": "smollm2-135m", "revision": None, "path": path}])


def test_an_empty_list_of_models_says_how_to_fetch_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path))
    code, _, err = run("models", "list")
    assert code == 0
    assert "rewright models pull smollm2-135m" in err


def test_a_key_that_expires_beyond_the_calendar_is_listed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWRIGHT_SERVER__STATE", str(tmp_path / "state"))
    with closing(Database(ServerSettings(state=str(tmp_path / "state")))) as database:
        for expires_at in (10**15, 10**18, 4102444800):
            KeyStore(database).create("mine", ["rewrite"], expires_at=expires_at)
    code, out, _ = run("keys", "list")
    assert code == 0
    assert (out.count("beyond"), out.count("2100-01-01")) == (2, 1)


def test_a_training_that_would_diverge_again_is_wrong_use_and_no_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise DivergedError.of_rows("the loss is nan", ["row-1"])

    monkeypatch.setattr("cli.sft._train_here", diverge)
    code, _, err = run("sft", "in.jsonl", "-o", "model")
    assert (code, "the loss is nan in the batch of rows row-1" in err) == (2, True)


@pytest.mark.parametrize("command", ["train", "sft"])
@pytest.mark.parametrize(("source", "message"), [("nope.jsonl", "no such file"), ("empty.jsonl", "holds no rows")])
def test_a_training_without_rows_leaves_no_folder(
    run: Run, tmp_path: Path, command: str, source: str, message: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    code, _, err = run(command, source, "-o", "made")
    assert (code, f"{source}{':' if source == 'nope.jsonl' else ''} {message}" in err) == (2, True)
    assert not (tmp_path / "made").exists()
