"""What tests of every kind share: the embedded model, and data sets that are not ours to ship."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from agent.models import ModelFiles, resolve_model
from agent.settings import ModelSettings

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

# Read when Ray is imported, here and by every process that a test starts. The first is what the service gives Ray too;
# without the others Serve's proxy has fifteen seconds to come up.
os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "1")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")

# A shell starts what it runs in the background with Ctrl-C ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Settings in the environment of whoever runs the tests would change what is tested.

    Services that tests start keep their state apart from that of a service of the same user.
    """
    for name in [name for name in os.environ if name.startswith("REWRIGHT_") and "__" in name]:
        del os.environ[name]
    os.environ["REWRIGHT_SERVER__STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def model_files() -> ModelFiles:
    """The embedded model, fetched on the first run of all."""
    return resolve_model(ModelSettings())


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """A folder of public data sets: `$REWRIGHT_TEST_DATA`, else `shared/data` beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("REWRIGHT_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder}: set REWRIGHT_TEST_DATA")
    return folder
