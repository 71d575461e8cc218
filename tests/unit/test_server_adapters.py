"""Which adapters a service offers, and which version is active: folders and one small file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.exceptions import AdapterError
from server.adapters import AdapterStore, PublishedVersion
from server.exceptions import UnavailableError, UnknownNameError
from tests.disk_log import assert_durable, disk_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("math/1", "math/2", "math/10", "text/1", ".hidden/1", "empty"):
        (tmp_path / "store" / name).mkdir(parents=True)
    (tmp_path / "outside" / "1").mkdir(parents=True)
    return tmp_path / "store"


def test_a_service_without_a_folder_has_no_adapters() -> None:
    store = AdapterStore()
    assert (store.names(), store.wanted(), store.resolve(None)) == ([], [], None)
    with pytest.raises(UnknownNameError, match="there are none"):
        store.resolve("math")


def test_names_and_versions_are_what_lies_there_now(folder: Path) -> None:
    store = AdapterStore(folder)
    assert store.names() == ["math", "text"]
    assert store.versions("math") == [1, 2, 10]
    (folder / "math" / "11").mkdir()
    assert store.resolve("math@11") == "math@11"


def test_a_name_means_its_active_version_and_activating_an_older_one_goes_back(folder: Path) -> None:
    store = AdapterStore(folder)
    assert store.active("math") is None
    for version in (2, 10, 1):
        store.activate("math", version)
        assert store.resolve("math") == f"math@{version}"
        assert AdapterStore(folder).active("math") == version  # another process, or a restart
    assert sorted(p.name for p in (folder / "math").iterdir()) == ["1", "10", "2", "active"]


def test_a_name_that_was_never_activated_has_to_be_asked_for_by_version(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="activate one of 1, 2, 10, or ask for one as 'math@10'") as raised:
        AdapterStore(folder).resolve("math")
    assert raised.value.code == "no_active_version"


@pytest.mark.parametrize(
    "asked",
    ["", "@1", "math@", "math@0", "math@01", "math@-1", "math@1@2", "../outside@1", "..", "math/1", ".hidden@1", "m\0"],
)
def test_what_is_no_name_is_unknown_and_nothing_outside_is_reached(folder: Path, asked: str) -> None:
    store = AdapterStore(folder, "math@1")
    with pytest.raises(UnknownNameError) as raised:
        store.resolve(asked)
    assert raised.value.param == "adapter"
    with pytest.raises(UnknownNameError):
        store.require(asked, 1)


def test_an_active_version_that_is_gone_or_garbled_is_none(folder: Path) -> None:
    store = AdapterStore(folder)
    for content in ("3\n", "latest", "../2", "", "\N{SNOWMAN}"):
        (folder / "math" / "active").write_text(content)
        assert store.active("math") is None
    store.activate("math", 2)
    assert store.active("math") == 2


def test_only_versions_that_are_there_are_activated(folder: Path) -> None:
    store = AdapterStore(folder)
    with pytest.raises(UnknownNameError, match="no version 3; there are 1, 2, 10"):
        store.activate("math", 3)
    with pytest.raises(UnknownNameError, match="unknown adapter 'empty'"):
        store.activate("empty", 1)


def test_what_is_active_stays_so_after_a_power_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = disk_log(monkeypatch, folder)
    AdapterStore(folder).activate("math", 2)
    (written,) = {name for kind, name in log if kind == "sync"} - {"math"}
    assert_durable(log, "math/active", written)


def test_many_activations_at_once_leave_one_of_them_and_no_litter(folder: Path) -> None:
    store = AdapterStore(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.activate("math", (1, 2, 10)[n % 3]), range(60)))
    assert store.active("math") in (1, 2, 10)
    assert not list((folder / "math").glob(".active*"))


def test_what_cannot_be_written_is_said_and_leaves_no_litter(folder: Path) -> None:
    (folder / "math" / "active" / "in the way").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="cannot be written"):
        AdapterStore(folder).activate("math", 1)
    assert not list((folder / "math").glob(".active*"))


def test_the_default_may_be_a_name_a_version_or_a_folder_elsewhere(folder: Path) -> None:
    store = AdapterStore(folder, "math@2")
    store.activate("math", 10)
    assert store.resolve(None) == "math@2"
    following = AdapterStore(folder, "math")
    assert following.resolve(None) == "math@10"
    store.activate("math", 1)
    assert following.resolve(None) == "math@1"
    with pytest.raises(AdapterError, match=r"rewrite\.adapter 'maths'.*no such folder; nor is it the name of one in"):
        AdapterStore(folder, "maths")


def test_a_default_name_that_was_never_activated_gets_its_latest_version_once(folder: Path) -> None:
    assert AdapterStore(folder, "math").resolve(None) == "math@10"
    (folder / "math" / "11").mkdir()
    assert AdapterStore(folder, "math").resolve(None) == "math@10"


def test_an_engine_loads_the_default_and_what_is_active(folder: Path) -> None:
    store = AdapterStore(folder, "text@1")
    store.activate("math", 2)
    assert store.wanted() == ["text@1", "math@2"]
    store.activate("text", 1)
    assert store.wanted() == ["text@1", "math@2"]
    assert store.path_of("math@2") == folder / "math" / "2"
    for gone in ("math@3", "math", "../outside@1"):
        with pytest.raises(AdapterError):
            store.path_of(gone)


def test_a_version_without_a_card_has_no_base_model_and_messages_have_no_paths(folder: Path) -> None:
    store = AdapterStore(folder)
    (folder / "math" / "2" / "rewright.json").write_text('{"name": "math", "version": "2", "base_model": "tiny"}')
    assert store.published("math") == [
        PublishedVersion(1, None),
        PublishedVersion(2, "tiny"),
        PublishedVersion(10, None),
    ]
    assert store.without_paths(f"adapter {folder}/math/2: broken") == "adapter math/2: broken"
