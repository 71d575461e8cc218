"""Where settings come from, which one wins, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.exceptions import SettingsError
from cli.settings import Given, Settings, load_settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "rewright.toml"
    file.write_text('[engine]\ndtype = "float32"\nthreads = 3\n\n[rewrite]\nmax_tokens = 100\n')
    return file


def test_nothing_given_means_the_defaults() -> None:
    assert load_settings(None, {}) == Settings()


def test_the_file_wins_over_the_defaults(config: Path) -> None:
    assert load_settings(config, {}).engine.threads == 3


def test_the_environment_wins_over_the_file(config: Path) -> None:
    settings = load_settings(config, {"REWRIGHT_ENGINE__DTYPE": "bfloat16"})
    assert (settings.engine.dtype, settings.engine.threads) == ("bfloat16", 3)


def test_a_flag_wins_over_the_environment(config: Path) -> None:
    flags = [Given.by_flag("rewrite.max_tokens", "--max-tokens", 300)]
    assert load_settings(config, {"REWRIGHT_REWRITE__MAX_TOKENS": "200"}, flags).rewrite.max_tokens == 300


def test_a_flag_that_was_not_used_changes_nothing(config: Path) -> None:
    flags = [Given.by_flag("rewrite.max_tokens", "--max-tokens", None)]
    assert load_settings(config, {}, flags).rewrite.max_tokens == 100


def test_variables_without_a_double_underscore_are_no_settings() -> None:
    environment = {"REWRIGHT_HOME": "/x", "REWRIGHT_API_KEY": "k", "REWRIGHT_PORT": "tcp://10.0.0.1:80", "HOME": "/"}
    assert load_settings(None, environment) == Settings()


def test_structured_values_in_the_environment_are_json() -> None:
    environment = {"REWRIGHT_REWRITE__STRATEGIES__MINE": '[{"proposer": "solve", "temperatures": [0.2], "samples": 2}]'}
    (step,) = load_settings(None, environment).rewrite.strategies["mine"]
    assert (step.proposer, step.temperatures, step.samples) == ("solve", (0.2,), 2)


def test_a_number_that_is_one_of_a_few_may_come_from_the_environment() -> None:
    settings = load_settings(None, {"REWRIGHT_ENGINE__VLLM__MAX_LORA_RANK": "8"})
    assert settings.engine.vllm.max_lora_rank == 8
    with pytest.raises(SettingsError, match="max_lora_rank"):
        load_settings(None, {"REWRIGHT_ENGINE__VLLM__MAX_LORA_RANK": "9"})


def test_null_in_the_environment_unsets_what_the_file_set(config: Path) -> None:
    assert load_settings(config, {"REWRIGHT_ENGINE__THREADS": "null"}).engine.threads is None


def test_strategies_of_the_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[[rewrite.strategies.mine]]\nproposer = "hint"\n[[rewrite.strategies.mine]]\nproposer = "solve"\n')
    assert [s.proposer for s in load_settings(file, {}).rewrite.strategies["mine"]] == ["hint", "solve"]


def test_the_resolved_tree_can_be_loaded_again(config: Path) -> None:
    settings = load_settings(config, {})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[engine]\nthreads = 0\n",
            r"setting engine\.threads: .*greater than or equal to 1, got '0' \(from .*c\.toml\)",
        ),
        ("[engine]\ndtyp = 1\n", r"setting engine\.dtyp: there is no such setting \(from .*c\.toml\)"),
        ("[motor]\nx = 1\n", r"setting motor: there is no such setting \(from .*c\.toml\)"),
        ("engine = 3\n", r"setting engine: .*got '3' \(from .*c\.toml\)"),
        ("[gate]\nmin_length_ratio = 9\n", r"setting gate: min_length_ratio must be below .* \(from .*c\.toml\)"),
        ("[engine\n", r"--config .*c\.toml: .*line 1"),
    ],
)
def test_a_wrong_file_is_named_with_the_setting(tmp_path: Path, toml: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(toml)
    with pytest.raises(SettingsError, match=message):
        load_settings(tmp_path / "c.toml", {})


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, value: str) -> None:
    """It could not be published with what was trained."""
    (tmp_path / "c.toml").write_text(f"[train.optimizer]\nmax_grad_norm = {value}\n")
    with pytest.raises(SettingsError, match=r"setting train\.optimizer\.max_grad_norm: Input should be .*c\.toml"):
        load_settings(tmp_path / "c.toml", {})
    for name in ("SFT__KL_WEIGHT", "TRAIN__REWARD__DISTANCE_SCALE", "GATE__MATH_TIMEOUT_S", "SERVER__JOBS__DRAIN_S"):
        with pytest.raises(SettingsError):
            load_settings(None, {f"REWRIGHT_{name}": value})


def test_every_default_is_a_number_that_json_can_hold() -> None:
    json.dumps(Settings().model_dump(), default=str, allow_nan=False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config .*none\.toml: No such file"):
        load_settings(tmp_path / "none.toml", {})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"c\.toml"):
        load_settings(tmp_path / "c.toml", {})


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"setting engine\.dtype: .*got 'int8' \(from REWRIGHT_ENGINE__DTYPE\)"):
        load_settings(None, {"REWRIGHT_ENGINE__DTYPE": "int8"})


def test_a_variable_with_broken_json_is_named() -> None:
    with pytest.raises(SettingsError, match="REWRIGHT_REWRITE__STRATEGIES: looks like JSON but is not"):
        load_settings(None, {"REWRIGHT_REWRITE__STRATEGIES": "{"})


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(SettingsError, match=r"setting rewrite\.max_tokens: .*got '0' \(from --max-tokens\)"):
        load_settings(None, {}, [Given.by_flag("rewrite.max_tokens", "--max-tokens", 0)])


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"REWRIGHT_ENGINE__THREADS": "x", "REWRIGHT_SERVER__PORT": "0"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "setting engine.threads",
        "setting server.port",
    ]


def test_what_is_missing_is_said_to_be_and_the_file_named(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[compare]\nmethods = ["sft"]\n[engine]\nthreads = 1\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    first = str(caught.value).splitlines()[0]
    assert first == f"setting compare.train: is missing: it has no default (from {file})"


def test_a_wrong_step_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[[rewrite.strategies.mine]]\nproposer = "judge"\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    (line,) = str(caught.value).splitlines()
    assert line.startswith("setting rewrite.strategies.mine.0.proposer: Input should be 'solve', 'hint' or 'rewrite'")
