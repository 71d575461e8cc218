"""Results on disk: what is resumed, what is refused, and what a killed exam leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.exceptions import OutputFileError, ResumeError
from trainer.exam.files import ResultFile, check_output, samples_path
from trainer.exam.results import EvaluationResult, Measure, ModelIdentity, TaskResult

EMPTY = EvaluationResult(model=ModelIdentity(name="m", weights_sha256="1"), settings={"limit": 3})
DONE = TaskResult(
    kind="retention",
    data="sha256:x",
    rows=1,
    metrics={"acc": Measure(value=0.5, stderr=None)},
    primary="acc",
    chat_template=False,
)


def samples(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in samples_path(path).read_text().splitlines()]


def test_finished_tasks_are_kept_and_the_samples_of_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    file = ResultFile(path, EMPTY, resume=False)
    file.add("piqa", DONE, [{"row": 1}, {"row": 2}])
    file.add("ifeval", DONE.model_copy(update={"not_run": "no network"}), [])
    with samples_path(path).open("a") as killed:
        killed.write('{"task": "lambada", "row": 7}\n{"task": "lam')
    resumed = ResultFile(path, EMPTY, resume=True)
    assert samples(path) == [{"task": "piqa", "row": 1}, {"task": "piqa", "row": 2}]
    assert resumed.finished("piqa", "sha256:x")
    assert not resumed.finished("lambada", "sha256:x")
    assert not resumed.finished("ifeval", "sha256:x")
    resumed.add("lambada", DONE, [{"row": 7}])
    read = EvaluationResult.model_validate_json(path.read_bytes())
    assert read == resumed.result
    assert read.tasks["piqa"] == DONE
    assert [sample["task"] for sample in samples(path)] == ["piqa", "piqa", "lambada"]


def test_other_weights_settings_or_rows_cannot_be_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    ResultFile(path, EMPTY, resume=False).add("piqa", DONE, [])
    other = EMPTY.model_copy(update={"model": ModelIdentity(name="m", weights_sha256="2")})
    with pytest.raises(ResumeError, match=r"model\.weights_sha256 was '1' and is now '2'"):
        ResultFile(path, other, resume=True)
    with pytest.raises(ResumeError, match=r"settings\.limit was 3 and is now 4"):
        ResultFile(path, EMPTY.model_copy(update={"settings": {"limit": 4}}), resume=True)
    with pytest.raises(ResumeError, match="base was None and is now"):
        ResultFile(path, EMPTY.model_copy(update={"base": EMPTY.model}), resume=True)
    with pytest.raises(ResumeError, match="task piqa was measured on other data"):
        ResultFile(path, EMPTY, resume=True).finished("piqa", "sha256:y")
    path.write_text("{}")
    with pytest.raises(ResumeError, match="is no result of an evaluation"):
        ResultFile(path, EMPTY, resume=True)


def test_another_chat_template_cannot_be_mixed_in_but_where_none_was_written_down_it_is_taken_as_the_same(
    tmp_path: Path,
) -> None:
    path, known = tmp_path / "out.json", EMPTY.model_copy(update={"model": model_with("a")})
    ResultFile(path, known, resume=False).add("piqa", DONE, [])
    with pytest.raises(ResumeError, match=r"model\.tokenizer_sha256 was 'a' and is now 'b'"):
        ResultFile(path, EMPTY.model_copy(update={"model": model_with("b")}), resume=True)
    older = tmp_path / "older.json"
    ResultFile(older, EMPTY, resume=False).add("piqa", DONE, [])
    resumed = ResultFile(older, known.model_copy(update={"notes": ["rounded"]}), resume=True)
    assert resumed.finished("piqa", "sha256:x")
    assert (resumed.result.model.tokenizer_sha256, resumed.result.notes) == ("a", ["rounded"])


def model_with(tokenizer: str) -> ModelIdentity:
    return EMPTY.model.model_copy(update={"tokenizer_sha256": tokenizer})


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(OutputFileError, match="exists already"):
        check_output(tmp_path / "out.json", resume=False)
    with pytest.raises(OutputFileError, match="there is no folder"):
        check_output(tmp_path / "none" / "out.json", resume=False)
    with pytest.raises(OutputFileError, match="is a folder"):
        check_output(tmp_path, resume=True)


def test_samples_of_another_result_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "exam.samples.jsonl").write_text('{"task": "piqa"}\n')
    with pytest.raises(OutputFileError, match=r"exam\.samples\.jsonl: holds samples already"):
        check_output(tmp_path / "exam", resume=False)
    check_output(tmp_path / "exam", resume=True)


def test_two_results_in_one_folder_have_samples_of_their_own() -> None:
    names = ["exam.json", "exam", "exam.txt", "sft-lr0.001", "sft-lr0.003", "sft-lr0.001.json"]
    assert [samples_path(Path(name)).name for name in names] == [
        "exam.samples.jsonl",
        "exam.samples.jsonl",
        "exam.txt.samples.jsonl",
        "sft-lr0.001.samples.jsonl",
        "sft-lr0.003.samples.jsonl",
        "sft-lr0.001.samples.jsonl",
    ]
