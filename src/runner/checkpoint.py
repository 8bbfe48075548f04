"""Checkpoints: what cannot be had elsewhere, hashed, and visible only when whole.

Everything is written beside its place, synced, and renamed into it; the manifest with sizes and hashes comes last.
Nothing here is code: safetensors and JSON. Layout: `checkpoints/step-00000020/{trainable,optimizer}.safetensors,
state.json, MANIFEST.json`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from runner import fingerprint
from runner.protocols import CheckpointContent, Fault, Mistake

FORMAT = 2
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


class Local:
    """Checkpoints in the run's own folder."""

    def save(self, folder: Path, checkpoint: CheckpointContent) -> Path:
        """Raises `Fault` when there is no room or the disk fails; what was there before stays, one of this step too."""
        root = folder / "checkpoints"
        place = self.place(folder, checkpoint.step)
        beside = root / f".tmp-{place.name}-{os.getpid()}"
        if fault_of(place) is None:
            return place
        needed = sum(
            t.numel() * t.element_size() for part in (checkpoint.trainable, checkpoint.optimizer) for t in part.values()
        )
        try:
            beside.mkdir(parents=True)
            free = shutil.disk_usage(root).free
            if free < 1.2 * needed:
                raise OSError(28, f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
            save_file(dict(checkpoint.trainable), beside / "trainable.safetensors")
            save_file(dict(checkpoint.optimizer), beside / OPTIMIZER)
            (beside / STATE).write_text(json.dumps(dict(checkpoint.state)), encoding="utf-8")
            files = {}
            for file in sorted(beside.iterdir()):
                file.chmod(0o666 & ~current_umask())
                sync(file)
                files[file.name] = {"bytes": file.stat().st_size, "sha256": fingerprint.of_file(file)}
            manifest = beside / "MANIFEST.json"
            manifest.write_text(
                json.dumps({"format": FORMAT, "step": checkpoint.step, "files": files}, indent=1), encoding="utf-8"
            )
            sync(manifest)
            sync(beside)
            if place.exists():  # a broken one, which `newest` passed over
                remove(place)
            beside.rename(place)
            sync(root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            last, _ = self.newest(folder)
            kept = f"the last good one is {last}" if last else "there is none yet"
            raise Fault(f"{place}: the checkpoint could not be written ({error}); {kept}.") from error
        return place

    def newest(self, folder: Path) -> tuple[Path | None, list[str]]:
        passed_over: list[str] = []
        for place in reversed(places(folder)):
            fault = fault_of(place)
            if fault is None:
                return place, passed_over
            passed_over.append(f"{place} was passed over: {fault}.")
        return None, passed_over

    def load(self, path: Path, optimizer: bool = True) -> CheckpointContent:
        fault = fault_of(path, () if optimizer else (OPTIMIZER,))
        if fault is not None:
            raise Mistake(
                f"{path} is not a whole checkpoint: {fault}. Give another, or resume=auto for the newest whole one."
            )
        return CheckpointContent(
            step=json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))["step"],
            trainable=load_file(path / "trainable.safetensors"),
            optimizer=load_file(path / OPTIMIZER) if optimizer else {},
            state=json.loads((path / STATE).read_text(encoding="utf-8")),
        )

    def state(self, path: Path) -> Mapping[str, Any]:
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def steps(self, folder: Path) -> list[int]:
        return [int(place.name.removeprefix("step-")) for place in places(folder)]

    def place(self, folder: Path, step: int) -> Path:
        return folder / "checkpoints" / f"step-{step:08d}"

    def prune(self, folder: Path, keep: Iterable[int]) -> None:
        kept = {f"step-{step:08d}" for step in keep}
        for place in places(folder):
            if place.name not in kept:
                remove(place)

    def cut_back(self, folder: Path, step: int) -> None:
        for place in places(folder):
            if int(place.name.removeprefix("step-")) > step or fault_of(place) is not None:
                remove(place)
        for pattern in (".tmp-*", ".del-*"):
            for leftover in (folder / "checkpoints").glob(pattern):
                shutil.rmtree(leftover)


def places(folder: Path) -> list[Path]:
    """The visible checkpoints, oldest first. Folders of other names are the user's own."""
    return sorted(
        place for place in (folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8,}", place.name)
    )


def fault_of(path: Path, unread: Sequence[str] = ()) -> str | None:
    """Why a checkpoint is not whole, or None: every file of the manifest is there with its size and hash. Files of the
    names in `unread` may be gone or broken."""
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        if set(files) != {"trainable.safetensors", OPTIMIZER, STATE}:
            return "its manifest names other files"
    except FileNotFoundError:
        return "it has no MANIFEST.json"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its MANIFEST.json cannot be read ({error})"
    for name, expected in files.items():
        if name in unread:
            continue
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if fingerprint.of_file(file) != expected["sha256"]:
            return f"{name} does not have the hash that it was written with"
    return None


def own_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """What belongs into a checkpoint, by name: all but frozen weights that have a file (a module's `files`).

    Of such a module its trainable parameters are kept, and the buffers beside them. Tied weights stand once.
    """
    backed = tuple(f"{name}." for name, module in objective.named_modules() if getattr(module, "files", None))
    training = {
        name
        for name, module in objective.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    }
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in objective.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        is_buffer = not isinstance(tensor, nn.Parameter)
        if not name.startswith(backed) or tensor.requires_grad or (is_buffer and name.rpartition(".")[0] in training):
            seen.add(id(tensor))
            kept[name] = tensor
    return kept


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def restore(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: Path) -> None:
    """Copy saved values into a model's tensors. Raises `Mistake` unless names, shapes and types are the same."""
    if set(tensors) != set(saved):
        missing, foreign = sorted(set(tensors) - set(saved)), sorted(set(saved) - set(tensors))
        raise Mistake(
            f"{where} does not belong to this model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(foreign)} are foreign {foreign[:3]}. Compose the model as the run's config.yaml says."
        )
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise Mistake(
                f"{where}: {name} is {list(saved[name].shape)} {saved[name].dtype}, this model has "
                f"{list(tensor.shape)} {tensor.dtype}. Compose the model as the run's config.yaml says."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as `INDEX.NAME` tensors; one that is a scalar for all (AdamW's step) is a vector."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, list[Tensor]] = {}
    states = sorted(optimizer.state_dict()["state"].items())
    large = {name for _, state in states for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
    for index, state in states:
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise Fault(
                    f"optimizer: {type(optimizer).__name__} keeps {name} as {type(value).__name__}, and only tensors "
                    "can be saved. Choose another optimizer."
                )
            if name not in large:
                scalars.setdefault(name, []).append(value)
            else:
                tensors[f"{index}.{name}"] = value
    return snapshot(tensors | {name: torch.stack(values) for name, values in scalars.items()})


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Tensor], where: Path) -> None:
    """Raises `Mistake` when there is state for more parameters than the optimizer has."""
    whole = optimizer.state_dict()
    parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        index, dot, key = name.partition(".")
        if dot:
            if int(index) >= parameters:
                raise Mistake(f"{where}: the optimizer's {name} belongs to no parameter of this model.")
            state.setdefault(int(index), {})[key] = tensor
    for name, tensor in saved.items():
        if "." not in name:
            for at, value in zip(sorted(state) or range(len(tensor)), tensor, strict=True):
                state.setdefault(at, {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def remove(place: Path) -> None:
    """Take a checkpoint out of sight first, so that a kill leaves no half of one."""
    doomed = place.with_name(f".del-{place.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    place.rename(doomed)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
