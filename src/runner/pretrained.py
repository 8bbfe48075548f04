"""The folders that transformers' save_pretrained writes: read, and hashed by weight file.

Every part that takes such a folder or a hub name reads it here, so what can be wrong with one is told in one way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner import fingerprint
from runner.protocols import Mistake


def read(setting: str, path: str, what: str, from_pretrained: Any, **arguments: Any) -> Any:
    """What `from_pretrained` makes of the folder or hub name `path`; `setting` is the config key that gives it
    (`llm.path`). Raises `Mistake` where it cannot: a stranger's folder can be broken in any way."""
    try:
        return from_pretrained(path, **arguments)
    except (MemoryError, Mistake):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Mistake(
            f"{setting}={path}: no {what.removeprefix('an ').removeprefix('a ')} could be read ({reason}). "
            "Give a folder that transformers' save_pretrained wrote, or a hub name that this machine can reach."
        ) from error


def find(setting: str, path: str, name: str) -> Path:
    """One file of the folder or hub name `path`. Raises `Mistake` without it."""
    from transformers.utils import cached_file

    return Path(str(read(setting, path, name, lambda _: cached_file(path, name))))


def shapes_alone() -> bool:
    """Whether parts are built without their weights, to be shown: under `torch.device("meta")`."""
    import torch

    return torch.get_default_device().type == "meta"


def weight_files(path: str) -> dict[str, str]:
    """sha256 of each weight file of a folder or hub name, by the file's name."""
    from transformers.utils import cached_file

    folder = Path(str(cached_file(path, "config.json"))).parent
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return {file.name: fingerprint.of_file(file) for file in weights}
