"""Runs in real processes that are quick to start: forked by a server that has imported everything and trained nothing.

Each is one rank of a run and goes through `runner.worker`, as under any engine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from runner import cli, training, worker
from runner.config import compose
from runner.feed import FedStep
from runner.processes import hand_over
from runner.session import Gate, Session

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["ranks", "runner.models.instruct", "runner.data.digits", "peft", "transformers.models.qwen2"]
)

Sabotage = Callable[[int], None]
"""Called in each process with its rank before it trains."""


def start(
    folder: Path,
    overrides: Sequence[str],
    processes: int = 1,
    sabotage: Sabotage | None = None,
    asked: int | None = None,
    config_dir: Path | None = None,
) -> list[BaseProcess]:
    """The processes of one run; `asked`: how many its config says, if not as many; `config_dir`: parts from outside."""
    cluster = [] if processes == 1 else ["cluster=ddp", f"cluster.num_processes={asked or processes}"]
    folder.mkdir(parents=True, exist_ok=True)
    hand_over(compose("train", [*overrides, *cluster], config_dir), folder)
    port = free_port()
    started = []
    for rank in range(processes):
        process = SERVER.Process(target=work, args=(folder, rank, processes, port, sabotage))
        process.start()
        started.append(process)
    return started


def train(
    folder: Path,
    overrides: Sequence[str],
    processes: int = 1,
    sabotage: Sabotage | None = None,
    config_dir: Path | None = None,
) -> list[int]:
    """Their exit codes; a negative one is the signal that ended it."""
    started = start(folder, overrides, processes, sabotage, config_dir=config_dir)
    for process in started:
        process.join(100)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return [-999 if code is None else code for code in codes]


def launch(words: Sequence[str], output: Path) -> BaseProcess:
    """`runner WORDS` in a process and a group of its own, which prints into a file."""
    process = SERVER.Process(target=command_line, args=(list(words), output, os.getcwd()))
    process.start()
    return process


def command_line(words: list[str], output: Path, working_folder: str) -> None:
    multiprocessing.set_start_method("fork", force=True)
    os.setsid()
    os.chdir(working_folder)
    with output.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = ["runner", *words]
    code = cli.main(words)
    sys.stdout.flush()
    os._exit(code)


def work(folder: Path, rank: int, processes: int, port: int, sabotage: Sabotage | None) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    multiprocessing.set_start_method("fork", force=True)  # as in a process that no server made, for its loader workers
    sys.argv = ["worker", str(folder)]
    torch.set_num_threads(1)
    if sabotage is not None:
        sabotage(rank)
    worker.print_into(folder / "logs" / f"rank{rank}.log", stdout=True)
    os._exit(worker.main())


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def killing(step: int, where: str, only: int | None = None) -> Sabotage:
    """kill -9 in optimizer step `step`, counted from 0: before its `forward`, its `update` or its `record`, or when the
    next checkpoint is about to become visible (`save`). Of every process, or of one rank `only`."""
    return partial(kill_at, step, where, only)


def kill_at(step: int, where: str, only: int | None, rank: int) -> None:
    steps_of, update, rename = training.steps_of, Gate.step, Path.rename
    here = where if only in (None, rank) else "nowhere"
    current = -1

    def killed_if(hit: bool) -> None:
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    def fed(session: Session) -> Iterator[FedStep]:
        nonlocal current
        for one in steps_of(session):
            current = one.step
            killed_if(here == "forward" and current == step)
            yield one

    def updated(gate: Gate, grad_norm: torch.Tensor) -> None:
        killed_if(here == "update" and current == step)
        update(gate, grad_norm)
        killed_if(here == "record" and current == step)

    def renamed(path: Path, target: Path) -> Path:
        killed_if(here == "save" and target.name.startswith("step-") and current >= step)
        return rename(path, target)

    training.steps_of, Gate.step, Path.rename = fed, updated, renamed  # type: ignore[assignment, method-assign]
