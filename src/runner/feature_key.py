"""What an encoder's features depend on, as JSON: two that differ in any of it have no features in common."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner import fingerprint

OWN_CODE = ("data", "encoders", "projectors", "models/aligned.py")
"""Files below this package that stand between an item and its features."""
PLAIN = (str, int, float, bool, type(None))
RECEPTION = ("truncation", "padding")
"""Of a tokenizer: how it was last called, not what it is."""


def of_encoder(
    encoder: nn.Module, node: Mapping[str, Any], precision: Mapping[str, Any], device: torch.device, batch_size: int
) -> dict[str, Any]:
    """Weights, constructor arguments (`node` of the config), preprocess, code, versions, and what changes last bits:
    precision, device, threads and how many items are encoded together."""
    modules = dict(encoder.named_modules())
    return {
        "weights": of_weights(encoder),
        "config": json.loads(json.dumps(node, default=str, sort_keys=True)),
        "modules": fingerprint.of_json([(name, *of_module(one)) for name, one in modules.items()]),
        "preprocess": described(getattr(encoder, "preprocess", None)),
        "code": of_code([*modules.values(), getattr(encoder, "preprocess", None)]),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "pillow")},
        "precision": dict(precision),
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "items_at_once": batch_size,
    }


def of_weights(encoder: nn.Module) -> str:
    """sha256 of the parameters and buffers, also of those that are in no file, but not of those that are idle."""
    idle = {
        id(one)
        for module in encoder.modules()
        for name, one in getattr(module, "model", nn.Module()).named_parameters()
        if name in getattr(module, "idle", ())
    }
    weights = dict([*encoder.named_parameters(), *encoder.named_buffers()])
    return of_tensors({name: one for name, one in weights.items() if id(one) not in idle})


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    known = hashlib.sha256()
    for name, tensor in tensors.items():
        known.update(f"{name}\0".encode())
        update_by(known, tensor)
    return known.hexdigest()


def update_by(known: Any, tensor: Tensor) -> None:
    """The tensor's type, shape and bytes."""
    known.update(f"{tensor.dtype}\0{list(tensor.shape)}\0".encode())
    known.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def of_module(module: nn.Module) -> tuple[str, dict[str, str]]:
    """Its class, and what stands in it beside tensors and parts: numbers, texts, and a family's config."""
    plain = {key: repr(value) for key, value in vars(module).items() if key != "training" and is_plain(value)}
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_json_string"):
        plain["config"] = str(config.to_json_string(use_diff=False))
    return f"{type(module).__module__}.{type(module).__qualname__}", plain


def is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return isinstance(value, (*PLAIN, torch.dtype))


def of_code(parts: Iterable[Any]) -> str:
    """sha256 of this package's files between an item and its features, and of the folders of files that define a part
    from outside. Installed packages are known by their versions."""
    here = Path(__file__).parent
    own = [here / place for place in OWN_CODE]
    named = {getattr(one if isinstance(one, FunctionType) else type(one), "__module__", None) for one in parts}
    sources = [Path(getattr(sys.modules.get(str(name)), "__file__", None) or here) for name in named]
    outside = [one.parent for one in sources if one != here and here not in one.parents and not installed(one)]
    files = [file for place in [*own, *outside] for file in (place.glob("*.py") if place.is_dir() else [place])]
    return fingerprint.of_json(sorted({fingerprint.of_file(file) for file in files}))


def installed(file: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(file.parts))


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def described(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Any object as JSON that is the same in every process: no addresses, no order of sets. Of what can be described by
    nothing else, the hash of its pickle."""
    if isinstance(value, PLAIN):
        return value
    if id(value) in above:
        return "itself"
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(key): described(one, inside) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [described(one, inside) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(described(one, inside), sort_keys=True) for one in value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Tensor):
        return of_tensors({"": value})
    if isinstance(value, FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, described([value.__defaults__, value.__kwdefaults__, closed], inside)]
    if isinstance(value, MethodType):
        return [value.__qualname__, described(value.__self__, inside)]
    if isinstance(value, partial):
        return described([value.func, value.args, value.keywords], inside)
    if isinstance(value, type | ModuleType):
        return getattr(value, "__qualname__", value.__name__)
    if isinstance(value, os.PathLike | torch.dtype | np.dtype | np.generic):
        return str(value)
    own: Any = None
    if hasattr(value, "to_str"):  # a tokenizer of Rust
        own = {key: one for key, one in json.loads(value.to_str()).items() if key not in RECEPTION}
    elif is_dataclass(value):
        own = {one.name: described(getattr(value, one.name), inside) for one in fields(value)}
    elif hasattr(value, "__dict__"):
        own = described(vars(value), inside)
    else:
        own = hashlib.sha256(pickle.dumps(value)).hexdigest()
    return {f"{type(value).__module__}.{type(value).__qualname__}": own}
