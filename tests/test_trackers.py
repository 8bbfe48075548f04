"""Trackers: what Comet's archive and a Comet server get, and that no tracker can hurt or hold up a run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from comet_archive import archives
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runner.protocols import Prediction, RunDescription
from runner.trackers.comet import LARGEST_SIDE, SMALLEST_SIDE, Comet, pictures
from runner.trackers.isolated import Isolated

SECRET = "planted-0123456789-secret"
PARAMETERS = {"optimizer.lr": 0.002, "train.epochs": None, "tracker.comet.api_key": "${oc.env:COMET_API_KEY}"}
CONFIG = "name: quick # Ziffern, số\noptimizer:\n  lr: 0.002\n"


@pytest.fixture
def told() -> Iterator[list[logging.LogRecord]]:
    """What the trackers log."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("runner.trackers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def warnings(told: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in told if record.levelno == logging.WARNING]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test go; and an API key in the environment that must show up nowhere."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("COMET_API_KEY", SECRET)
    return folder


def description(folder: Path, **changes: Any) -> RunDescription:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return RunDescription(**{"name": "quick", "folder": folder, "parameters": PARAMETERS,
                             "config_file": folder / "config.yaml", **changes})  # fmt: skip


def scan() -> Image.Image:
    """8 x 8 grey, every pixel another."""
    return Image.frombytes("L", (8, 8), bytes(range(0, 256, 4)))


def predictions(folder: Path) -> list[Prediction]:
    file = folder / "photo.png"
    Image.new("RGB", (3000, 1500), (200, 10, 10)).save(file)
    return [
        Prediction("a-1", 'Which "digit",\nplease?', "seven", "one", {"image": (scan(),), "series": ([[1.0]],)}),
        Prediction("a-2", "Màu gì?", "red", None, {"image": (file, file)}),
    ]


def assert_secret_is_nowhere(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    for archive in archives(folder):
        for name in archive.files.namelist():
            assert SECRET.encode() not in archive.files.read(name), name


def test_an_offline_archive_has_everything_and_no_network_is_tried(
    tmp_path: Path, temporary: Path, no_network: list[Any], told: list[logging.LogRecord]
) -> None:
    folder = tmp_path / "run"
    tracker = Comet(project="runner", workspace="lab", api_key=None, tags=["first"])
    assert tracker.resume_key is None
    tracker.start(description(folder))
    expected = []
    for step in range(1, 40):
        tracker.log_metrics({"train/loss": 1 / step, "train/lr": 10.0**-step}, step)
        expected += [("train/loss", step, 1 / step), ("train/lr", step, 10.0**-step)]
    tracker.log_metrics({"val/loss": float("inf")}, 39)
    tracker.log_samples(predictions(tmp_path), 39)
    tracker.finish("stopped")
    tracker.finish("finished")

    assert no_network == []
    assert os.environ["COMET_ERROR_TRACKING_ENABLE"] == "false"  # else some runs ask for the address of Sentry
    (archive,) = archives(folder)
    assert archive.head["project_name"] == "runner" and archive.head["workspace"] == "lab"
    assert set(archive.head["tags"]) == {"first"}
    assert archive.head["offline_id"] == tracker.resume_key
    assert archive.others["Name"] == "quick" and archive.others["status"] == "stopped"
    assert archive.parameters == PARAMETERS
    assert archive.metrics == sorted([*expected, ("val/loss", 39, float("inf"))])
    assert archive.assets["config.yaml"].decode() == CONFIG
    assert list(csv.reader(io.StringIO(archive.assets["samples-step-39.csv"].decode(), newline=""))) == [
        ["id", "prompt", "answer", "truth"],
        ["a-1", 'Which "digit",\nplease?', "seven", "one"],
        ["a-2", "Màu gì?", "red", ""],
    ]
    assert set(archive.pictures) == {"a-1", "a-2", "a-2 2"}
    picture, metadata, step = archive.pictures["a-1"]
    assert picture.size == (256, 256) and step == 39
    assert picture.resize((8, 8), Image.Resampling.NEAREST).tobytes() == scan().tobytes()
    assert metadata == {"id": "a-1", "prompt": 'Which "digit",\nplease?', "answer": "seven", "truth": "one"}
    photo = archive.pictures["a-2"][0]
    assert photo.size == (1024, 512) and photo.convert("RGB").getpixel((5, 5)) == (200, 10, 10)
    assert list(temporary.iterdir()) == []
    assert warnings(told) == []
    assert_secret_is_nowhere(folder)


def test_runs_in_one_process_and_resumes_have_an_archive_each(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "run"
    keys: list[str | None] = []
    for life in range(3):
        target = folder if life < 2 else tmp_path / "other"
        tracker = Comet("runner", None, "", [])
        (target / "comet").mkdir(parents=True, exist_ok=True)
        if life == 1:
            (target / "comet" / "killed.zip").write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
        tracker.start(description(target, resume_key=keys[0] if life == 1 else None, parameters={"life": life}))
        tracker.log_metrics({"train/loss": float(life)}, life)
        tracker.finish("finished")
        keys.append(tracker.resume_key)
    first, second = archives(folder)
    (third,) = archives(tmp_path / "other")
    assert keys[0] == keys[1] != keys[2]
    for life, archive in enumerate((first, second, third)):
        assert archive.head["offline_id"] == keys[life] and archive.head["resume_strategy"] == "get_or_create"
        assert archive.metrics == [("train/loss", life, float(life))] and archive.parameters == {"life": life}
    assert list(temporary.iterdir()) == []


@given(width=st.integers(1, 3000), height=st.integers(1, 300), mode=st.sampled_from(["1", "L", "P", "RGBA", "CMYK"]))
@settings(max_examples=25, deadline=None)
def test_a_logged_picture_has_a_size_for_people(width: int, height: int, mode: str) -> None:
    original = Image.new(mode, (width, height))
    (picture,) = pictures(Prediction("a", "q", "a", None, {"scan": (original, "not a picture")}))
    assert SMALLEST_SIDE / 2 <= max(picture.size) <= LARGEST_SIDE
    assert picture.mode in ("L", "RGB") and original.size == (width, height)
    if max(width, height) <= SMALLEST_SIDE:
        assert picture.width * height == picture.height * width


class Server:
    """A stand-in for Comet's server on this machine. `behaviour`: answer, refuse_key, or hang (never answer)."""

    def __init__(self, behaviour: str = "answer") -> None:
        self.behaviour = behaviour
        self.requests: list[tuple[str, bytes]] = []
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.requests.append((self.path, body))
                if server.behaviour == "hang":
                    server._over.wait()
                    return
                self.send_response(400 if server.behaviour == "refuse_key" else 200)
                self.end_headers()
                self.wfile.write(json.dumps(server.reply(self.path, body)).encode())

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/clientlib/"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def reply(self, path: str, body: bytes) -> dict[str, Any]:
        if self.behaviour == "refuse_key":
            return {"msg": "invalid key", "sdk_error_code": 90212}
        if "isAlive/ver" in path:
            return {"msg": "5.0.0", "version": "5.0.0"}
        if "logger/add/run" in path:
            key = json.loads(body)["experimentKey"]
            names = {"projectId": "p", "projectName": "runner", "workspaceName": "lab", "runId": "r"}
            return {"experimentId": key, **names, "uploadLimits": {}, "featureToggles": []}
        return {}

    def got(self, part: str) -> list[bytes]:
        return [body for path, body in self.requests if part in path]

    def stop(self) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def make(behaviour: str) -> Server:
        servers.append(Server(behaviour))
        monkeypatch.setenv("COMET_URL_OVERRIDE", servers[-1].url)
        for name, seconds in (("HTTP", 1), ("API", 1), ("CLEANING", 2), ("UPLOAD", 1), ("FILE_UPLOAD", 1)):
            monkeypatch.setenv(f"COMET_TIMEOUT_{name}", str(seconds))
        return servers[-1]

    yield make
    for one in servers:
        one.stop()


def run_online(folder: Path, between: Callable[[], None] = lambda: None) -> Comet:
    tracker = Comet("runner", "lab", SECRET, ["first"])
    tracker.start(description(folder))
    tracker.log_metrics({"train/loss": 0.5}, 1)
    time.sleep(0.3)
    between()
    tracker.log_metrics({"train/loss": 0.25}, 2)
    tracker.log_samples(predictions(folder), 2)
    tracker.finish("finished")
    return tracker


def test_an_online_run_reaches_the_server(
    tmp_path: Path, temporary: Path, server: Callable[[str], Server], told: list[logging.LogRecord]
) -> None:
    comet = server("answer")
    tracker = run_online(tmp_path / "run")
    metrics = [(one["metricName"], one["step"], one["metricValue"])
               for body in comet.got("experiment/metric") for one in json.loads(body)["values"]]  # fmt: skip
    assert [one for one in metrics if "/" in one[0]] == [("train/loss", 1, 0.5), ("train/loss", 2, 0.25)]
    parameters = [one for body in comet.got("experiment/parameter") for one in json.loads(body)["values"]]
    assert {one["parameterName"] for one in parameters} >= set(PARAMETERS)
    uploads = b"".join(comet.got("asset/upload"))
    assert CONFIG.encode() in uploads and "Màu gì?".encode() in uploads
    assert len(comet.got("visualizations/upload")) == 3
    assert json.loads(comet.got("logger/add/run")[0])["experimentKey"] == tracker.resume_key
    assert {"finished"} <= {json.loads(body)["value"] for body in comet.got("log-other")}
    assert warnings(told) == [] and archives(tmp_path / "run") == []
    assert list(temporary.iterdir()) == []


@pytest.mark.zoo
@pytest.mark.parametrize("behaviour", ["refuse_key", "hang", "closed"])
def test_without_a_server_an_online_run_goes_into_the_archive(
    behaviour: str, tmp_path: Path, temporary: Path, server: Callable[[str], Server], told: list[logging.LogRecord]
) -> None:
    comet = server(behaviour)
    if behaviour == "closed":
        comet.stop()
    run_online(tmp_path / "run")
    (archive,) = archives(tmp_path / "run")
    assert archive.metrics == [("train/loss", 1, 0.5), ("train/loss", 2, 0.25)]
    assert archive.parameters == PARAMETERS and archive.assets["config.yaml"].decode() == CONFIG
    assert len(archive.pictures) == 3 and archive.others["status"] == "finished"
    (warning,) = warnings(told)
    assert warning.startswith("Comet is not online") and str(tmp_path / "run" / "comet") in warning
    assert SECRET not in "".join(record.getMessage() for record in told)
    assert list(temporary.iterdir()) == []
    assert_secret_is_nowhere(tmp_path / "run")


def test_a_server_that_goes_away_leaves_everything_in_an_archive(
    tmp_path: Path, server: Callable[[str], Server], told: list[logging.LogRecord]
) -> None:
    comet = server("answer")
    began = time.monotonic()
    run_online(tmp_path / "run", between=comet.stop)
    assert time.monotonic() - began < 12
    (archive,) = archives(tmp_path / "run")
    assert archive.metrics == [("train/loss", 1, 0.5), ("train/loss", 2, 0.25)]
    assert archive.parameters == PARAMETERS and len(archive.pictures) == 3
    (warning,) = warnings(told)
    assert "--force-reupload" in warning and SECRET not in warning
    assert_secret_is_nowhere(tmp_path / "run")


HANGING_RUN = """
import logging, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from runner.protocols import RunDescription
from runner.trackers.comet import Comet
from runner.trackers.isolated import Isolated
assert "comet_ml" not in sys.modules and "PIL" not in sys.modules

class Uploading:
    resume_key = None
    def start(self, run): ThreadPoolExecutor().submit(time.sleep, 50)
    def log_metrics(self, metrics, step): pass
    def finish(self, status): pass

folder = Path(sys.argv[1])
(folder / "config.yaml").write_text("a: 1")
comet = Comet("runner", None, "a-key-that-nobody-knows", [])
tracker = Isolated({"comet": comet, "uploading": Uploading()}, deadline_s=1.5)
tracker.start(RunDescription("run", folder, {}, folder / "config.yaml"))
for step in range(100):
    tracker.log_metrics({"train/loss": 1.0}, step)
began = time.monotonic()
tracker.finish("finished")
print(time.monotonic() - began)
"""


def test_a_server_that_never_answers_does_not_keep_the_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/clientlib/"
        began = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", HANGING_RUN, str(tmp_path)],
            env={**os.environ, "COMET_URL_OVERRIDE": url, "COMET_TIMEOUT_HTTP": "60"},
            capture_output=True,
            text=True,
            timeout=80,
        )
        took = time.monotonic() - began
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 2.5 and took < 12
    assert process.stderr.splitlines() == [
        "Tracker comet did not finish within 1.5 s and is left behind, 100 calls waiting. metrics.jsonl has everything."
    ]


class Recording:
    """A tracker that remembers; `trouble` is called with the method's name before it does."""

    def __init__(self, trouble: Callable[[str], None] = lambda method: None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.resume_key: str | None = None
        self._trouble = trouble

    def start(self, run: RunDescription) -> None:
        self._trouble("start")
        self.resume_key = run.resume_key or "new"
        self.calls.append(("start", run.resume_key))

    def log_metrics(self, metrics: Any, step: int) -> None:
        self._trouble("log_metrics")
        self.calls.append(("log_metrics", metrics, step))

    def log_samples(self, predictions: Any, step: int) -> None:
        self._trouble("log_samples")
        self.calls.append(("log_samples", predictions, step))

    def finish(self, status: str) -> None:
        self._trouble("finish")
        self.calls.append(("finish", status))

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


def drive(tracker: Isolated, folder: Path, steps: int = 5, **changes: Any) -> float:
    """A short run; every call but `finish` must return at once. Gives the seconds that `finish` took."""
    slowest = 0.0
    for call in (
        lambda: tracker.start(description(folder, **changes)),
        *(lambda step=step: tracker.log_metrics({"train/loss": 1 / (step + 1)}, step) for step in range(steps)),
        lambda: tracker.log_samples([Prediction("a", "q", "x", "y")], steps),
        lambda: tracker.resume_key,
    ):
        began = time.monotonic()
        call()
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.05
    began = time.monotonic()
    tracker.finish("finished")
    tracker.finish("failed")
    tracker.log_metrics({"train/loss": 0.0}, 99)
    return time.monotonic() - began


def test_a_good_tracker_gets_every_call_in_order(tmp_path: Path, told: list[logging.LogRecord]) -> None:
    good, other = Recording(), Recording()
    tracker = Isolated({"good": good, "other": other})
    assert drive(tracker, tmp_path, steps=300, resume_key=json.dumps({"good": "old"})) < 5
    assert good.calls == [
        ("start", "old"),
        *(("log_metrics", {"train/loss": 1 / (step + 1)}, step) for step in range(300)),
        ("log_samples", [Prediction("a", "q", "x", "y")], 300),
        ("finish", "finished"),
    ]
    assert json.loads(tracker.resume_key or "") == {"good": "old", "other": "new"}
    assert warnings(told) == []


def test_a_secret_of_the_environment_is_no_parameter(tmp_path: Path) -> None:
    resolved = {"tracker.comet.api_key": SECRET, "data.url": f"https://me:{SECRET}@host", "seed": 1, "name": "quick"}
    tracker = Isolated({"comet": Comet("runner", None, None, [])})
    tracker.start(description(tmp_path / "run", parameters=resolved))
    tracker.finish("finished")
    (archive,) = archives(tmp_path / "run")
    masked = {"tracker.comet.api_key": "$COMET_API_KEY", "data.url": "https://me:$COMET_API_KEY@host"}
    assert archive.parameters == {**resolved, **masked}
    assert_secret_is_nowhere(tmp_path / "run")


def test_no_tracker_at_all_is_a_tracker_too(tmp_path: Path) -> None:
    tracker = Isolated({})
    drive(tracker, tmp_path)
    assert tracker.resume_key is None


def test_a_raising_tracker_is_told_once_and_switched_off(tmp_path: Path, told: list[logging.LogRecord]) -> None:
    def trouble(method: str) -> None:
        if method.startswith("log_"):
            raise SystemExit(f"the server said: {SECRET} is wrong")

    bad, good = Recording(trouble), Recording()
    drive(Isolated({"bad": bad, "good": good}), tmp_path, steps=20)
    assert bad.names == ["start", "finish"] and len(good.calls) == 23
    assert warnings(told) == [
        "Tracker bad failed in log_metrics with SystemExit: the server said: $COMET_API_KEY is wrong. "
        "metrics.jsonl has everything.",
        "Tracker bad failed 3 times in a row and is switched off. metrics.jsonl has everything.",
    ]
    assert SECRET not in "".join(record.getMessage() for record in told)


def test_a_tracker_that_fails_now_and_then_goes_on(tmp_path: Path, told: list[logging.LogRecord]) -> None:
    count = iter(range(1000))

    def trouble(method: str) -> None:
        if method == "log_metrics" and next(count) % 3 != 2:
            raise ValueError("two of three fail")

    now_and_then = Recording(trouble)
    drive(Isolated({"now_and_then": now_and_then}), tmp_path, steps=30)
    assert now_and_then.names.count("log_metrics") == 10 and len(warnings(told)) == 1


def test_a_tracker_that_cannot_start_is_left_alone(tmp_path: Path, told: list[logging.LogRecord]) -> None:
    def trouble(method: str) -> None:
        raise RuntimeError(f"no {method}")

    bad = Recording(trouble)
    tracker = Isolated({"bad": bad, "not a tracker": object()})  # type: ignore[dict-item]
    drive(tracker, tmp_path)
    assert bad.calls == [] and tracker.resume_key is None
    assert sorted(warnings(told)) == [
        "Tracker bad failed in start with RuntimeError: no start. metrics.jsonl has everything.",
        "Tracker not a tracker failed in start with AttributeError: 'object' object has no attribute 'start'. "
        "metrics.jsonl has everything.",
    ]


@pytest.mark.parametrize("where", ["start", "log_metrics", "finish"])
def test_a_hanging_tracker_is_left_behind_at_the_deadline(
    where: str, tmp_path: Path, told: list[logging.LogRecord]
) -> None:
    release = threading.Event()
    bad = Recording(lambda method: (release.wait(20), None)[1] if method == where else None)
    good = Recording()
    took = drive(Isolated({"bad": bad, "good": good}, deadline_s=0.4), tmp_path)
    release.set()
    assert 0.3 < took < 1.0 and good.names[-1] == "finish"
    (warning,) = warnings(told)
    assert warning.startswith("Tracker bad did not finish within 0.4 s and is left behind")


def test_a_slow_tracker_loses_the_newest_lines_and_says_how_many(tmp_path: Path, told: list[logging.LogRecord]) -> None:
    slow = Recording(lambda method: time.sleep(0.02))
    drive(Isolated({"slow": slow}, capacity=10), tmp_path, steps=100)
    kept = [call[2] for call in slow.calls if call[0] == "log_metrics"]
    dropped = 101 - len(kept)
    assert 80 < dropped <= 91 and kept == list(range(len(kept))) and slow.names[-1] == "finish"
    assert warnings(told) == [f"Tracker slow was too slow: {dropped} calls were dropped. metrics.jsonl has everything."]
