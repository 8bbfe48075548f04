"""Start one process of a benchmark, the same way for every peer, and take its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOLD = 15
"""Last lines of a failed process that are shown."""


def is_installed(peer: str) -> bool:
    """trl is no dependency of this project; every other peer stands on what is."""
    return peer != "trl" or find_spec("trl") is not None


def build_fixture(variant: str, folder: Path) -> None:
    """In a process of its own: this one stays small, since on Linux a child's peak memory counts its parent's."""
    start(["benchmarks.fixture", variant, str(folder)], threads=1)


def run_peer(peer: str, fixture: Path, threads: int, steps: int, warm_up: int, check: bool) -> dict[str, Any]:
    """What a peer measured in a new process. Raises SystemExit with a sentence when it failed."""
    with tempfile.TemporaryDirectory() as work:
        words = [f"benchmarks.peers.{peer}", str(fixture), work, "--steps", str(steps), "--warm-up", str(warm_up)]
        words += ["--check"] if check else []
        output = start([*words, "--started", repr(time.time())], threads)
    record: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    if record["threads"] != threads:
        raise SystemExit(f"{peer} ran on {record['threads']} threads, not on {threads}, so it cannot be compared.")
    return record


def start(words: list[str], threads: int) -> str:
    """Run `python -m WORDS` to its end; gives what it wrote on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment(threads),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        last_words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-TOLD:])
        raise SystemExit(f"{words[0]} failed with exit code {done.returncode}; it said last:\n{last_words}")
    return done.stdout


def environment(threads: int) -> dict[str, str]:
    """No network, and threads alike. The command line of runner sets GOMP_SPINCOUNT by itself; here all have it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "LOG_LEVEL")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "30000",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
