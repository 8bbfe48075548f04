"""Processes on this machine by torch elastic, started from here: what `torchrun` does, without its command line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from uuid import uuid4

from annotated_types import Ge

from runner.protocols import LAUNCHER, Ending

HANDLED = ("SIGTERM", "SIGINT", "SIGHUP")
"""Signals that elastic hands on to the processes, unless they are ignored here, as by nohup."""


class Elastic:
    """`cluster=ddp`. A process that fails ends the others; none is started again: resume=auto goes on."""

    def __init__(self, shutdown_s: Annotated[int, Ge(1)]) -> None:
        self._shutdown_s = shutdown_s

    def launch(self, folder: Path, processes: int, threads: int) -> Ending:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # -P: a file of the working folder does not stand in for a module of Python's.
        command = ("-P", "-m", "runner.worker", str(folder.resolve()))
        # Elastic leaves its folder of (empty) logs behind, if it may choose where.
        with TemporaryDirectory() as logs, signals_kept(), quiet_elastic(), environment(settings_for(threads)):
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=0,
                monitor_interval=0.1,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
                signals_to_handle=",".join(
                    name for name in HANDLED if signal.getsignal(number(name)) != signal.SIG_IGN
                ),
                shutdown_timeout=self._shutdown_s,
            )
            try:
                elastic_launch(config, sys.executable)(*command)
            except SignalException as stopped:
                return Ending(signal=int(stopped.sigval))
            except ChildFailedError as error:
                return Ending(exit_codes={rank: failure.exitcode for rank, failure in error.failures.items()})
        return Ending()


def settings_for(threads: int) -> dict[str, str]:
    """Environment variables of the processes; the user's own go before them."""
    wanted = {"OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    if sys.platform.startswith("linux"):
        wanted["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks for this machine's name, which need not resolve
    return {name: value for name, value in wanted.items() if name == LAUNCHER or name not in os.environ}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """For a while; elastic adds some of its own, which go as well."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def number(name: str) -> int:
    return int(getattr(signal, name))


@contextmanager
def signals_kept() -> Iterator[None]:
    """Elastic leaves its handlers behind, which would end the next job of a sweep."""
    before = {number(name): signal.getsignal(number(name)) for name in HANDLED}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for one, handler in before.items():
                signal.signal(one, handler)


@contextmanager
def quiet_elastic() -> Iterator[None]:
    """What it would log about a signal or a failure is told by the processes themselves, in sentences."""
    loggers = [
        logging.getLogger(name)
        for name in logging.root.manager.loggerDict
        if name.startswith("torch.distributed.elastic")
    ]
    before = [(logger, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled
