"""What Hydra, OmegaConf, YAML and the system complain of while a config is read, each as the end of a sentence."""

from __future__ import annotations

import errno
import re
import tempfile
import traceback

import yaml
from hydra._internal.config_repository import IConfigRepository

READERS = ("hydra", "omegaconf", "antlr4", "yaml")
"""Libraries that read command lines and configs: what they raise is about those."""
THE_MACHINES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""The system's errors that no other word or file would mend."""


def is_about_input(error: BaseException) -> bool:
    """Whether an error that nothing foresaw speaks of what the user wrote, and not of a fault of runner."""
    if isinstance(error, OSError):
        return error.errno not in THE_MACHINES
    if isinstance(error, RecursionError | UnicodeError):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).partition(".")[0] in READERS


def reason(error: BaseException) -> str:
    """What an error says, on one line, without its full stop and without what only Hydra's authors can use."""
    if isinstance(error, RecursionError):
        return "it nests too deep, or leads back to itself"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if not str(error).strip() and error.__cause__:
        return reason(error.__cause__)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    keys = [line.partition(": ")[2] for line in lines if line.startswith("full_key: ")]
    said = " ".join(line for line in lines if not re.match(r"(full_key|object_type|reference_type)\b", line))
    key = next((f" (at {key})" for key in keys if key and key not in said), "")
    return (said.rstrip(".:") or type(error).__name__) + key


def yaml_mistake(error: yaml.YAMLError) -> str:
    """Names the file and the line where it can."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    name = getattr(error, "name", "A config file")  # a ReaderError knows the file alone
    where = f"{mark.name}:{mark.line + 1}" if mark else name
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or reason(error)
    return f"{where} is not YAML: {said}."


def is_readable(repository: IConfigRepository, name: str, above: tuple[str, ...] = ()) -> bool:
    """Whether a config file, and what its defaults list names, can be loaded without coming back to it."""
    if name in above:
        return False
    try:
        loaded = repository.load_config(name)
    except Exception:
        return False
    folder = name.rpartition("/")[0]
    for one in (loaded.defaults_list or ()) if loaded else ():
        group, option = getattr(one, "group", None), getattr(one, "value", None)
        below = f"{group}/{option}" if group else str(getattr(one, "path", None))
        below = below.lstrip("/") if below.startswith("/") or not folder else f"{folder}/{below}"
        if not is_readable(repository, below, (*above, name)):
            return False
    return True


def told_as_fault(error: BaseException) -> str:
    """A sentence for what is runner's own fault, with its traceback in a file that the sentence names."""
    text = f"{type(error).__name__}: {reason(error)}. This is a fault of runner"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="runner-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"{text}; please report it."
    return f"{text}; please report it with its traceback, {file.name}."
