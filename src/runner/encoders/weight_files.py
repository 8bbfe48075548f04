"""The files of a pretrained encoder: in a folder, or in the hub's cache."""

from __future__ import annotations

from pathlib import Path

import torch

from runner import fingerprint
from runner.protocols import Mistake


def find(path: str, name: str, seat: str) -> Path:
    """One file of a folder or hub name; `seat` is the config's node, for messages. Raises `Mistake` without it."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(path, name)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Mistake(
            f"{seat}.path={path}: there is no {name} to be read ({reason}). Give a folder that has it, or a hub name "
            "that this machine can reach."
        ) from error


def fingerprints(folder: Path) -> dict[str, str]:
    """sha256 of each file of weights by name."""
    return {file.name: fingerprint.of_file(file) for file in sorted(folder.glob("*.safetensors"))}


def shapes_alone() -> bool:
    """Whether the model is built without its weights, to be shown: under `torch.device("meta")`."""
    return torch.get_default_device().type == "meta"
