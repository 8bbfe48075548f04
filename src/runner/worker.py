"""What each process of any engine runs: `python -m runner.worker FOLDER` trains on the config in a run's folder.

The engine sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from runner.protocols import LAUNCHER, Stopped
from runner.signals import end_with_parent


def main() -> int:
    """0 for a run that ended well or was stopped and saved: another code would make an engine end the others."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    if folder.is_relative_to(Path.cwd()):  # told as a run of one process tells it
        folder = folder.relative_to(Path.cwd())
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the run has handlers of its own
    if LAUNCHER in os.environ:  # one that was killed leaves no process behind
        end_with_parent(signal.SIGTERM, int(os.environ[LAUNCHER]))
    print_into(folder / "logs" / f"rank{rank}.log", stdout=rank != 0)
    import torch.distributed as distributed

    from runner.processes import note_failure, take_over
    from runner.training import train

    try:
        train(take_over(folder), folder)
    except Exception as error:
        if not (isinstance(error, Stopped) and error.saved):
            note_failure(folder, error)
            return 1
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


def print_into(log: Path, stdout: bool) -> None:
    """Send what this process and its libraries print into a file; the first process keeps its terminal."""
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr) if stdout else (sys.stderr,):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
