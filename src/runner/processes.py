"""A run's processes: this one alone, or those that the cluster's engine starts, each of which runs worker.py.

What they hand each other stands in the run's folder: the config on the way in, the first failure, status.json and
summary.json on the way out. So an engine needs to know nothing but how processes are started.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from runner import settings
from runner.config import Composed, build, composed_again, own_arguments, section
from runner.protocols import Ending, Engine, Fault, Mistake, Stopped
from runner.run_folder import LAUNCH_LOCK, LOCK, failure_of, locked, read_json, read_status, write_json
from runner.signals import CAUGHT

HANDED_OVER = ".launch.json"
FIRST_FAILURE = "logs/failure.json"
LOST = re.compile("by peer|remote process|Socket|Broken pipe|Connection refused")
"""How torch's backends tell of another process that went away."""


def train(composed: Composed, folder: Path) -> dict[str, Any]:
    """Train one run in its folder, on the cluster that its config names, and return its summary.

    Raises `Mistake` for what the user can mend, `Fault` for what went wrong, `Stopped` after a signal, all saved.
    """
    node = own_arguments(composed.tree["cluster"], settings.Cluster)
    if not node:
        from runner.training import train as train_here

        leave_others_alone()
        return train_here(composed, folder)
    engine: Engine = build(node, composed.plugin_folders)
    given = section(composed.tree["cluster"], settings.Cluster)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, LAUNCH_LOCK):
        hand_over(composed, folder)
        before = written(folder / "status.json")
        ending = engine.launch(folder, given.num_processes, given.threads or share_of_cores(given.num_processes))
        return outcome(folder, ending, began=written(folder / "status.json") != before)


def leave_others_alone() -> None:
    """A run of one process in a shell that has a launcher's variables: Accelerate would wait for the others."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise Mistake(
            f"This shell has WORLD_SIZE={os.environ['WORLD_SIZE']}, as torchrun or srun sets it, and cluster=local is "
            "one process. Set cluster=ddp, which starts the processes itself, or unset WORLD_SIZE."
        )
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def hand_over(composed: Composed, folder: Path) -> None:
    """Raises `Mistake` where the folder is another run's."""
    with locked(folder, LOCK):  # which the first process will hold: nobody else does
        pass
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / FIRST_FAILURE).unlink(missing_ok=True)
    folders = [str(one) for one in composed.plugin_folders]
    given = {"config": composed.saved, "choices": composed.choices, "plugin_folders": folders, "command": sys.argv}
    write_json(folder / HANDED_OVER, given)


def take_over(folder: Path) -> Composed:
    """In one of the run's processes, which goes by the launcher's command line from here on. Secrets, which are not
    written anywhere, are resolved in each."""
    given = json.loads((folder / HANDED_OVER).read_text(encoding="utf-8"))
    sys.argv = given["command"]
    return composed_again(given["config"], given["choices"], tuple(map(Path, given["plugin_folders"])))


def note_failure(folder: Path, error: Exception) -> None:
    """Keep the run's first failure: those that come after it are most often its consequence.

    It must be called before this process ends, and so before any other can notice.
    """
    beside = folder / f"logs/.failure-{os.getpid()}"
    try:
        if isinstance(error, Stopped):
            exit_code, text = 128 + error.signal, str(error)
        else:
            exit_code, text = failure_of(error, folder / "train.log")
        write_json(beside, {"exit_code": exit_code, "error": text, "lost_another": bool(LOST.search(str(error)))})
        os.link(beside, folder / FIRST_FAILURE)  # as open(..., "x"), but whole at once
    except FileExistsError:
        pass
    except OSError:  # on a full disk, say
        print(error, flush=True)
    finally:
        beside.unlink(missing_ok=True)


def outcome(folder: Path, ending: Ending, began: bool) -> dict[str, Any]:
    """The summary, or what the run's processes raised. `began`: whether they have written its status."""
    goes_on = f"resume={folder} goes on from the last checkpoint."
    failure = read_json(folder / FIRST_FAILURE)
    killed = [rank for rank, code in ending.exit_codes.items() if code < 0 and -code not in CAUGHT]
    if killed and (not failure or failure["lost_another"]):
        number = -ending.exit_codes[killed[0]]
        raise Fault(
            f"Process {killed[0]} of the run was ended by signal {number}"
            f"{', perhaps because memory ran out' if number == signal.SIGKILL else ''}. {goes_on}"
        )
    if failure and failure["exit_code"] > 128:
        raise Stopped(failure["exit_code"] - 128, failure["error"], saved=False)
    asked = ending.signal or next((-code for code in ending.exit_codes.values() if code < 0), None)
    if failure and not (failure["lost_another"] and asked and not began):
        raise (Mistake if failure["exit_code"] == Mistake.exit_code else Fault)(failure["error"])
    status = read_status(folder) if began else {}
    if status.get("state") == "stopped":
        number, step = status["exit_code"] - 128, status["step"]
        raise Stopped(number, f"Stopped by signal {number} after step {step}; resume={folder} goes on from there.")
    if status.get("state") == "finished" and not ending.exit_codes:
        return read_json(folder / "summary.json")
    if asked and not began:
        raise Stopped(asked, f"Stopped by signal {asked} before a step was trained.", saved=False)
    if ending.signal is not None:
        raise Stopped(
            ending.signal,
            f"Stopped by signal {ending.signal} before the last steps were saved: a second one came, or "
            f"cluster.shutdown_s is too short. {goes_on}",
            saved=False,
        )
    raise Fault(f"The run's processes ended without a word; {folder / 'logs'} has what they printed. {goes_on}")


def written(file: Path) -> tuple[int, int] | None:
    """Something that differs once the file has been written anew."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def share_of_cores(processes: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)
