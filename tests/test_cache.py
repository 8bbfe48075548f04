"""What is made once: whole or not there, made by one of several processes, and never left half by a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.cache import keep
from runner.protocols import Mistake

SLOW = """
import sys, time
from pathlib import Path
from runner.cache import keep

def make(folder):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    for number in range(20):
        (folder / f"part{number}").write_text("x" * 1000)
        time.sleep(float(sys.argv[3]))

print(keep(sys.argv[1], "kind", {"of": 1}, make))
"""


def started(root: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(root), str(log), str(pause)], stdout=subprocess.PIPE, text=True
    )


def test_what_was_made_is_found_again(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("whole")

    one = keep(tmp_path, "kind", {"of": 1}, make)
    assert keep(tmp_path, "kind", {"of": 1}, make) == one and len(made) == 1
    assert keep(tmp_path, "kind", {"of": 2}, make) != one and len(made) == 2
    assert json.loads((one / "entry.json").read_text())["made_of"] == {"of": 1}
    (one / "deep" / "file").write_text("cut")
    assert keep(tmp_path, "kind", {"of": 1}, make) == one and len(made) == 3, "a file that is not whole is made anew"
    assert (one / "deep" / "file").read_text() == "whole"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise Mistake("a bad row")

    with pytest.raises(Mistake, match="a bad row"):
        keep(tmp_path, "kind", {}, make)
    assert [entry.suffix for entry in (tmp_path / "kind").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match=r"data.cache=.*file: .*Name a folder that can be written"):
        keep(tmp_path / "file", "kind", {}, lambda folder: None)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    both = [started(tmp_path / "cache", tmp_path / "log", 0.02) for _ in range(2)]
    places = {one.communicate(timeout=60)[0].strip() for one in both}
    assert len(places) == 1 and (tmp_path / "log").read_text() == "made\n"


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    one = started(tmp_path / "cache", tmp_path / "log", 0.2)
    part = tmp_path / "cache" / "kind"
    while not list(part.glob("*.part*/part3")):
        time.sleep(0.02)
    os.kill(one.pid, signal.SIGKILL)
    one.communicate()
    assert not [entry for entry in part.iterdir() if entry.suffix == ""]
    (place,) = started(tmp_path / "cache", tmp_path / "log", 0).communicate(timeout=60)[0].split()
    assert len(list(Path(place).glob("part*"))) == 20
    assert sorted(entry.suffix for entry in part.iterdir()) == ["", ".lock"], "what was left is cleared"
