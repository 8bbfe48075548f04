"""What every test stands on: one thread, no secrets, no settings of the machine's user, a working folder of its own."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("runner", deadline=None)  # a busy machine is no failure
settings.load_profile("runner")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it once
for _name in [name for name in os.environ if name == "LOG_LEVEL" or name.startswith("COMET_")]:
    del os.environ[_name]


def shared_folder() -> Path | None:
    """Data and models that are too large for the repository: RUNNER_TEST_DATA, or `shared` beside the repository."""
    given = os.environ.get("RUNNER_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared"
    if (folder / "data").is_dir() and (folder / "models").is_dir():
        return folder.resolve()
    if given:
        raise pytest.UsageError(f"RUNNER_TEST_DATA={given} has no data/ and models/; name a folder that has.")
    return None


SHARED = shared_folder()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made of rows once is kept for the tests alone."""
    os.environ["RUNNER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder with data/ and models/; tests that need it are skipped without it."""
    if SHARED is None:
        pytest.skip("set RUNNER_TEST_DATA to a folder with data/ and models/")
    return SHARED


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in its own tmp_path, so that nothing is left in the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Forbids connections and look-ups, and tells which were tried (not by threads that an earlier test left)."""
    tried: list[Any] = []
    earlier = set(threading.enumerate()) - {threading.main_thread()}

    def refuse(*arguments: Any, **_: Any) -> Any:
        if threading.current_thread() not in earlier:
            tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried
