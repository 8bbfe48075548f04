"""What a config may name as `_target_`, by seat and by kind, and how it is built.

Allowed are this package's own parts from the seat's own room, classes of torch, transformers and peft of the seat's
kind, and what the .py files directly in the folder given by --config-dir define. Nothing a YAML says can widen that.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from runner.protocols import Mistake
from runner.signatures import Signature, inspect_signature, is_function, read_signature

PACKAGE = Path(__file__).resolve().parent
ROOMS = {
    "model": "runner.models",
    "encoder": "runner.encoders",
    "projector": "runner.projectors",
    "fusion": "runner.fusion",
    "llm": "runner.models",
    "lora": "runner.models",
    "quantization": "runner.models",
    "data": "runner.data",
    "tracker": "runner.trackers",
    "checkpoint": "runner.checkpoint",
    "cluster": "runner.clusters",
    "optimizer": "runner.optimizer",
    "schedule": "runner.schedule",
}
"""Seat: the module or package that its own parts stand in."""

HYDRAS_OWN = ("hydra._internal.", "hydra_plugins.")
THIRD_PARTIES = ("torch", "transformers", "peft")
MODULE, OPTIMIZER, PEFT_CONFIG = "torch.nn.Module", "torch.optim.Optimizer", "peft.PeftConfig"
KINDS = {
    "model": MODULE,
    "encoder": MODULE,
    "projector": MODULE,
    "fusion": MODULE,
    "llm": MODULE,
    "lora": PEFT_CONFIG,
    "optimizer": OPTIMIZER,
}
"""Seat: the kind of a third party's class that may sit there. A node inside a seat's node may be a torch.nn.Module."""


@dataclass(frozen=True)
class Target:
    """What a `_target_` names: a definition in a source file, or a class of a third party."""

    name: str
    module: str
    file: Path | None = None
    is_plugin: bool = False

    def signature(self) -> Signature:
        signature = read_signature(self.file, self.name) if self.file else None
        return signature or inspect_signature(self.load())

    def load(self) -> Any:
        if self.file and self.is_plugin:
            return getattr(import_plugin(self.file), self.name)
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            raise Mistake(f"{self.module}.{self.name}: there is no such class ({error}).") from error


def find_target(
    path: str, target: Any, seat: str | None, plugin_folders: Sequence[Path], inner: bool = False
) -> Target:
    """`path` is the node's place in the config, `seat` its seat (None: any), `inner` a node inside the seat's own node.

    Raises `Mistake`, a sentence that names the target, when it may not be built there.
    """
    where = f"{path}._target_"
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        raise Mistake(f"{where}: {target!r} is no name of a class. Write module.Class.")
    module, _, name = target.rpartition(".")
    root = target.partition(".")[0]
    if any(part.startswith("_") for part in target.split(".")):
        raise Mistake(f"{where}: {target} is private and may not be built from a config.")
    if root == "runner":
        return _own_target(where, module, name, seat)
    if root in THIRD_PARTIES:
        return _third_party_target(where, module, name, seat, inner)
    for folder in plugin_folders:
        file = folder / f"{module}.py"
        if "." not in module and file.is_file():
            _refuse_taken_name(where, file, plugin_folders)
            _read(where, file, name)
            return Target(name, module, file, is_plugin=True)
    raise Mistake(
        f"{where}: {target} may not be built from a config. {_allowed(seat)}"
        + ("" if plugin_folders else " (name its folder with --config-dir)")
        + "."
    )


def _own_target(where: str, module: str, name: str, seat: str | None) -> Target:
    rooms = [ROOMS[seat]] if seat else sorted(set(ROOMS.values()))
    if not any(module == room or module.startswith(f"{room}.") for room in rooms):
        raise Mistake(f"{where}: {module}.{name} may not be built here. {_allowed(seat)}.")
    place = PACKAGE.joinpath(*module.split(".")[1:])
    file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    if not file.is_file():
        raise Mistake(f"{where}: there is no module {module}.")
    _read(where, file, name)
    if is_function(file, name) and module != ROOMS["optimizer"]:
        raise Mistake(f"{where}: {module}.{name} is a function and may not be built from a config. {_allowed(seat)}.")
    return Target(name, module, file)


def _third_party_target(where: str, module: str, name: str, seat: str | None, inner: bool) -> Target:
    target = Target(name, module)
    kinds = [MODULE] if inner else [KINDS[seat]] if seat in KINDS else [] if seat else sorted(set(KINDS.values()))
    try:
        found = target.load()
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error
    for kind in kinds:
        holder, _, wanted = kind.rpartition(".")
        if inspect.isclass(found) and issubclass(found, getattr(importlib.import_module(holder), wanted)):
            return target
    raise Mistake(f"{where}: {module}.{name} may not be built here. {_allowed(seat)}.")


def _read(where: str, file: Path, name: str) -> None:
    try:
        read_signature(file, name)
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error


def _allowed(seat: str | None) -> str:
    """What may be built in a seat, as a sentence without its full stop."""
    own = f"what {ROOMS[seat]} defines" if seat else "this package's own parts"
    kind = f", a {KINDS[seat]} of torch, transformers or peft" if seat in KINDS else ""
    return f"Allowed are {own}{kind} and a class in a .py file directly in your --config-dir folder"


_plugin_paths: set[Path] = set()
"""Folders that `import_plugin` has put on sys.path."""


def _owner(name: str, folders: Sequence[Path]) -> str | None:
    """Where Python itself would find a module of this name, the plugin folders left out."""
    if name in sys.stdlib_module_names:
        return "Python's standard library"
    ours = _plugin_paths | {folder.resolve() for folder in folders}
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() not in ours]
    spec = PathFinder.find_spec(name, elsewhere)
    return spec.origin if spec else None


def _refuse_taken_name(where: str, file: Path, plugin_folders: Sequence[Path]) -> None:
    owner = _owner(file.stem, plugin_folders)
    if owner:
        raise Mistake(
            f"{where}: {file} has the name of a module that Python finds elsewhere ({owner}). Rename the file."
        )


def import_plugin(file: Path) -> ModuleType:
    """Import a plugin's file under its plain name, its folder last on sys.path: nothing is shadowed, and loader workers
    that start afresh find it, so its objects can be pickled."""
    file = file.resolve()
    loaded = sys.modules.get(file.stem)
    if loaded is not None and loaded.__file__ and Path(loaded.__file__).resolve() == file:
        return loaded
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
        _plugin_paths.add(file.parent)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise Mistake(f"{file} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[file.stem]
        raise Mistake(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def build(node: Mapping[str, Any], plugin_folders: Sequence[Path] = (), **runtime: Any) -> Any:
    """Build what a node names, nested nodes first. Of `runtime` it is given what its signature names.

    Raises `Mistake` when the target may not be built.
    """
    target = find_target("config", node.get("_target_"), None, plugin_folders).load()
    names = inspect.signature(target).parameters
    if "params" in names and "parameters" in runtime:
        runtime = {"params": runtime["parameters"]} | runtime
    given = {name: _build_inside(value, plugin_folders, runtime) for name, value in node.items() if name != "_target_"}
    return target(**given, **{name: value for name, value in runtime.items() if name in names and name not in given})


def asked_by(node: Mapping[str, Any], plugin_folders: Sequence[Path] = ()) -> set[str]:
    """The names of what the target of a node takes."""
    return set(inspect.signature(find_target("config", node["_target_"], None, plugin_folders).load()).parameters)


def _build_inside(value: Any, plugin_folders: Sequence[Path], runtime: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, plugin_folders, **runtime)
        return {name: _build_inside(one, plugin_folders, runtime) for name, one in value.items()}
    if isinstance(value, list):
        return [_build_inside(one, plugin_folders, runtime) for one in value]
    return value


MOST_FOLDERS = 2_000
"""Below --config-dir; Hydra lists them all. More is another folder than was meant, or a link that leads round."""


def check_config_dir(folder: Path) -> None:
    """Raises `Mistake` for what cannot be a folder of configs, without a walk through all of it."""
    if not os.path.isdir(folder):
        raise Mistake(f"--config-dir: there is no folder {folder}.")
    holds_any = False
    for seen, (_, _, files) in enumerate(os.walk(folder, followlinks=True), start=1):
        holds_any = holds_any or any(name.endswith((".yaml", ".py")) for name in files)
        if seen > MOST_FOLDERS:
            raise Mistake(
                f"--config-dir: {folder} has more than {MOST_FOLDERS:,} folders below it. Give one that holds nothing "
                "but your configs and parts."
            )
    if not holds_any:
        raise Mistake(f"--config-dir: {folder} holds no .yaml and no .py. Give the folder of your configs and parts.")


def check_hydra(node: Any) -> Iterator[str]:
    """Hydra's own node can name code too: callbacks, loggers, a launcher, a sweeper. `node`: plain containers."""
    if node.get("callbacks"):
        yield "hydra.callbacks would run code that a config names. Take it away."
    for name in ("launcher", "sweeper"):
        target = str((node.get(name) or {}).get("_target_", HYDRAS_OWN[0]))
        if not target.startswith(HYDRAS_OWN):
            yield f"hydra.{name}._target_: {target} is no {name} of Hydra or an installed plugin. Take it away."
    for name in ("job_logging", "hydra_logging"):
        logging = node.get(name) or {}
        parts = [part for key in ("formatters", "handlers") for part in (logging.get(key) or {}).values()]
        if any("()" in part or not str(part.get("class", "logging.")).startswith("logging.") for part in parts):
            yield f"hydra.{name} would run code that a config names; a run's log is its train.log. Take it away."
