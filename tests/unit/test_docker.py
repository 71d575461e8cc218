"""What is in docker/ and compose.yaml, as far as it can be said without Docker."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from cli.settings import load_settings
from server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
NODES = ("head", "worker", "head-cpu", "worker-cpu")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    spec = importlib.util.spec_from_file_location("replay", ROOT / "docker" / "replay.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["replay"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stages(replay: ModuleType) -> dict[str, Any]:
    return replay.read_stages((ROOT / "docker" / "Dockerfile").read_text())


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def test_files_pass_their_schema_and_linters() -> None:
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    checked = subprocess.run([ROOT / "docker/check"], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_there_is_a_head_and_a_worker_for_each_profile(services: dict[str, Any]) -> None:
    assert set(services) == set(NODES)
    for name, service in services.items():
        profile = "cpu" if name.endswith("-cpu") else "gpu"
        assert service["profiles"] == [profile]
        assert service["build"]["target"] == profile
        assert service["command"] == [name.removesuffix("-cpu")]


@pytest.mark.parametrize("name", NODES)
def test_a_container_has_no_rights_that_it_does_not_need(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "network_mode", "user", "cap_add", "pid"} & set(service)
    # The root file system is read-only, so every place that is written to is a volume.
    targets = {volume.partition(":")[2] or volume for volume in service["volumes"]}
    assert {"/data/models", "/data/adapters", "/data/input", "/data/state", "/home/rewright", "/tmp"} == targets


def test_only_the_service_is_published_and_only_to_this_machine(services: dict[str, Any]) -> None:
    for name in NODES:
        ports = services[name].get("ports", [])
        assert ports == (["${REWRIGHT_PUBLISH:-127.0.0.1:8000}:8000"] if name.startswith("head") else [])
        assert set(services[name]["networks"]) == {"cluster"}


def test_secrets_must_be_set_and_only_the_head_has_the_keys(services: dict[str, Any]) -> None:
    for name in NODES:
        environment = services[name]["environment"]
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        if name.startswith("head"):
            assert environment["REWRIGHT_API_KEYS"].startswith("${REWRIGHT_API_KEYS:?")
        else:
            assert "REWRIGHT_API_KEYS" not in environment


def test_what_the_service_keeps_lies_on_volumes(services: dict[str, Any]) -> None:
    for name in ("head", "head-cpu"):
        service = services[name]
        settings = load_settings(None, {k: str(v) for k, v in service["environment"].items()}).server
        targets = {volume.partition(":")[2] for volume in service["volumes"]}
        assert {str(settings.adapters), str(settings.state_folder)} == {"/data/adapters", "/data/state"} & targets


def test_the_service_has_its_training_jobs_done_by_the_cluster_that_it_runs_on(services: dict[str, Any]) -> None:
    (port,) = re.findall(r"^readonly DASHBOARD_PORT=(\d+)$", ENTRYPOINT.read_text(), re.M)
    for name in ("head", "head-cpu"):
        environment = {k: str(v) for k, v in services[name]["environment"].items()}
        head = environment["RAY_HEAD"].partition(":")[0]
        assert load_settings(None, environment).server.cluster.dashboard == f"http://{head}:{port}"


def test_gpu_containers_reserve_the_gpus_and_cpu_containers_none(services: dict[str, Any]) -> None:
    for name in NODES:
        if name.endswith("-cpu"):
            assert "deploy" not in services[name]
        else:
            (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_every_node_finds_the_head_by_the_name_that_it_has(services: dict[str, Any]) -> None:
    for name in NODES:
        assert services[name]["environment"]["RAY_HEAD"] == "head:6379"
        if name.startswith("head"):
            assert services[name]["networks"]["cluster"]["aliases"] == ["head"]
        else:
            assert services[name]["healthcheck"]["test"] == ["CMD", "ray", "health-check", "--address", "head:6379"]


def test_stopping_leaves_time_to_finish_what_is_in_flight(services: dict[str, Any]) -> None:
    for name in ("head", "head-cpu"):
        minutes = re.fullmatch(r"(\d+)m", services[name]["stop_grace_period"])
        assert minutes
        assert 60 * int(minutes[1]) > ServerSettings().drain_timeout_s + 30


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_images_run_as_an_ordinary_user_and_tell_their_health(stages: dict[str, Any], target: str) -> None:
    assert stages[target].instructions[-1] == ("USER", "10001:10001")
    runtime = dict(stages[stages[target].parent].instructions)
    assert "/healthz" in runtime["HEALTHCHECK"]
    assert runtime["ENTRYPOINT"] == '["/usr/local/bin/entrypoint"]'
    assert stages["base"].parent == "${PYTHON_IMAGE}"
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-bookworm$", (ROOT / "docker/Dockerfile").read_text(), re.M
    )


@pytest.mark.parametrize(("target", "packages"), [("cpu", "cpu-packages"), ("gpu", "gpu-packages")])
def test_an_image_is_made_of_its_packages_and_the_code(
    replay: ModuleType, stages: dict[str, Any], target: str, packages: str
) -> None:
    assert replay.needed(stages, target) == ["base", "requirements", packages, "code", "runtime", target]
    installs = [
        rest for name in (packages, "code") for word, rest in stages[name].instructions if "pip install" in rest
    ]
    assert installs
    assert all(" -c constraints" in command or "--no-deps" in command for command in installs)


def test_the_context_holds_all_that_is_copied_and_no_data(stages: dict[str, Any]) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for stage in stages.values()
        for instruction, rest in stage.instructions
        if instruction == "COPY" and "--from" not in rest
        for word in [w for w in rest.split() if not w.startswith("--")][:-1]
    }
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_the_gpu_image_has_the_versions_that_were_tested_but_where_vllm_wants_others() -> None:
    tested, gpu = pins("constraints.txt"), pins("docker/constraints-gpu.txt")
    others = {name for name in tested.keys() & gpu.keys() if tested[name] != gpu[name]}
    assert others == {"numpy", "protobuf", "grpcio-reflection"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    eval_extra = project["optional-dependencies"]["eval"]
    required = {Requirement(line).name.lower().replace("_", "-") for line in [*project["dependencies"], *eval_extra]}
    assert required <= tested.keys() & gpu.keys()
    assert project["optional-dependencies"]["vllm"] == [f"vllm=={gpu['vllm']}"]


@pytest.mark.parametrize(
    ("role", "given", "missing"),
    [
        ("head", {}, "RAY_AUTH_TOKEN"),
        ("worker", {"REWRIGHT_API_KEYS": "k" * 16}, "RAY_AUTH_TOKEN"),
        ("head", {"RAY_AUTH_TOKEN": "t" * 64}, "REWRIGHT_API_KEYS"),
        ("head", {"RAY_AUTH_TOKEN": "t" * 64, "REWRIGHT_API_KEYS": ""}, "REWRIGHT_API_KEYS"),
    ],
)
def test_nothing_starts_without_its_secret(role: str, given: dict[str, str], missing: str) -> None:
    environment = {"PATH": os.environ["PATH"]} | given
    refused = subprocess.run([ENTRYPOINT, role], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert missing in refused.stderr
    assert refused.stdout == ""


def test_a_head_that_does_not_find_its_own_name_says_so() -> None:
    secrets = {"RAY_AUTH_TOKEN": "t" * 64, "REWRIGHT_API_KEYS": "k" * 16}
    environment = {"PATH": os.environ["PATH"], "RAY_HEAD": "no-such-host.invalid:6379"} | secrets
    refused = subprocess.run([ENTRYPOINT, "head"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "no-such-host.invalid:6379" in refused.stderr


def test_any_other_word_is_a_command_of_rewright() -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": os.environ.get("HOME", "/")}
    told = subprocess.run([ENTRYPOINT, "--help"], env=environment, capture_output=True, text=True)
    assert told.returncode == 0
    assert "serve" in told.stdout


@pytest.mark.parametrize("role", ["head", "worker"])
def test_what_ray_runs_for_its_jobs_gets_no_setting_and_no_secret_of_the_service(tmp_path: Path, role: str) -> None:
    """The entry script with a `ray` that writes down its environment, and a service that ends at once."""
    started, served = tmp_path / "ray", tmp_path / "rewright"
    programs = {
        "ray": f'[ "$1" = start ] || exit 0\nenv -0 >{started}.part; mv {started}.part {started}\n'
        'case "$*" in *--head*) exec sleep 60 ;; esac',
        "rewright": f"while [ ! -e {started} ]; do sleep 0.05; done; env -0 >{served}",
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    given = {
        "REWRIGHT_API_KEYS": "k" * 32,
        "REWRIGHT_ENGINE__KIND": "vllm",
        "REWRIGHT_SERVER__DATABASE": "postgresql://me:hunter2@db/x\nREWRIGHT_X__Y=1",
        "REWRIGHT_HOME": "/data/models",
    }
    ours = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "RAY_HEAD": "127.0.0.1:6379", "RAY_AUTH_TOKEN": "t"}
    subprocess.run([ENTRYPOINT, role], env=ours | given, timeout=60)
    of_ray = _environment(started)
    kept = {name: value for name, value in of_ray.items() if name.startswith("REWRIGHT_")}
    assert kept == {"REWRIGHT_HOME": "/data/models"}
    assert of_ray.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") == ("0" if role == "head" else None)
    if role == "head":
        assert given.items() <= _environment(served).items()


def _environment(path: Path) -> dict[str, str]:
    """What `env -0` wrote."""
    return dict(line.split("=", 1) for line in path.read_text().split("\0") if line)
