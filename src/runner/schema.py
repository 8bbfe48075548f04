"""A composed config held against its schema: plain nodes against settings.py, parts against their constructors.

Everything that is wrong is collected; nothing is built and nothing heavy is imported.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from runner import settings
from runner.annotations import check_value
from runner.protocols import Mistake
from runner.signatures import RUNTIME_ARGUMENTS
from runner.spelling import nearest
from runner.targets import ROOMS, find_target

UNKNOWN = object()
"""Stands for a value that is missing or does not resolve: told already, so nothing more is said of it."""

SeatName = str
MIXED = {"data": settings.Data, "checkpoint": settings.Checkpoint, "cluster": settings.Cluster}
"""Nodes that hold shared settings beside the arguments of the part that sits there."""
NEEDED = ("model", "data", "checkpoint", "cluster", "optimizer", "schedule")
"""Seats that must be taken in a config that trains."""
WITHOUT_MODEL = ("prepare",)
"""Verbs whose config needs no model."""
MAY_BE_EMPTY = ("cluster",)
"""Seats whose shared settings do alone: cluster=local needs no engine."""
BY_NAME = ("encoder", "tracker")
"""Seats that hold several parts, each in a node of its own: `encoder.image`."""
MODALITIES = ("image", "audio", "text", "series")
"""Those that every objective with encoders lists; a config may add its own."""
Settings = TypeVar("Settings")


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


TOPS = {"evaluate": settings.UsedToEvaluate, "generate": settings.UsedToGenerate}
"""Verb that uses a trained run: what stands at the top of its config."""
NO_NODES = (settings.Run, settings.Part, settings.Used, *TOPS.values(), *MIXED.values())
PLAIN: dict[str, type] = {
    snake_case(name): kind
    for name, kind in vars(settings).items()
    if isinstance(kind, type)
    and kind.__module__ == settings.__name__
    and dataclasses.is_dataclass(kind)
    and kind not in NO_NODES
}
"""Top node: its dataclass. `early_stopping` is `settings.EarlyStopping`."""


def section(node: Mapping[str, Any], kind: type[Settings]) -> Settings:
    """The dataclass out of exactly its own fields of a checked node."""
    return kind(**{name: node[name] for name in fields_of(kind)})


def own_arguments(node: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """What of a mixed node is not the shared settings': `_target_` and the part's own arguments."""
    shared = fields_of(kind)
    return {name: value for name, value in node.items() if name not in shared}


def projectors_of(tree: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The node of the projector for all modalities, if there is one, and those of single modalities by their names."""
    node, encoders = tree.get("projector") or {}, tree.get("encoder") or {}
    apart = {name: node[name] for name in dict.fromkeys((*MODALITIES, *encoders)) if name in node}
    return {name: value for name, value in node.items() if name not in apart} or None, apart


def fields_of(kind: type) -> dict[str, Any]:
    """Field: annotation."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


class Check:
    """One pass over a config. `unknown` holds the keys that are nowhere known, `lines` what else is wrong."""

    def __init__(self, plugin_folders: Sequence[Path], foreign_verbs: Sequence[str] = (), verb: str = "train") -> None:
        self.plugin_folders = plugin_folders
        self.top: Any = TOPS.get(verb, settings.Run)
        uses = verb in TOPS
        self.plain: dict[str, type] = {
            name: kind for name, kind in PLAIN.items() if (name == verb if uses else name not in foreign_verbs)
        }
        self.seats = () if uses else tuple(ROOMS)
        self.needed = [seat for seat in NEEDED if seat != "model" or verb not in WITHOUT_MODEL]
        self.unknown: list[str] = []
        self.lines: list[str] = []
        self._known: dict[str, None] = {}

    def tree(self, tree: Mapping[str, Any]) -> None:
        top = fields_of(self.top)
        for name in (*self.plain, *self.seats):
            self._known[name] = None
        self._settings("", {name: tree[name] for name in top if name in tree}, self.top)
        for name in (*self.plain, *self.needed) if "train" in tree else ():
            if tree.get(name) is None:
                self.lines.append(f"{name} is missing. Choose an option by {name}=OPTION.")
        for name, node in tree.items():
            if name in top or node is UNKNOWN or (node is None and name in self.plain):
                continue
            if name in self.plain:
                self._plain_node(name, node)
            elif name not in self.seats:
                self.unknown += leaf_paths(name, node)
            elif node is None:
                continue
            elif not isinstance(node, Mapping):
                self.lines.append(f"{name}: {node!r} is no part. Choose an option by {name}=OPTION.")
            elif name in BY_NAME:
                for key, inner in node.items():
                    self._seat(f"{name}.{key}", inner, name, f"{name}/{key}" if name == "encoder" else name)
            elif name == "projector":
                shared, apart = projectors_of(tree)
                if shared:
                    self._seat(name, shared, name, name)
                for modality, inner in apart.items():
                    if inner is not None and not (tree.get("encoder") or {}).get(modality):
                        self.lines.append(
                            f"projector.{modality}: there is no encoder.{modality}. Choose one by "
                            f"encoder/{modality}=OPTION, or take its projector away by projector/{modality}=null."
                        )
                    self._seat(f"{name}.{modality}", inner, name, f"{name}/{modality}")
            else:
                self._seat(name, node, name, name)

    def suggestion(self, path: str) -> str:
        """`; did you mean PATH?` for an unknown key: its name elsewhere, else the nearest beside it, else anywhere."""
        parent, _, last = path.rpartition(".")
        by_name = {known.rpartition(".")[2]: known for known in reversed(self._known)}
        same = [known for known in self._known if known.rpartition(".")[2] == last]
        beside = {
            name: f"{parent}.{name}".lstrip(".") for name in by_name if f"{parent}.{name}".lstrip(".") in self._known
        }
        found = nearest(path, same) or next(iter(same), None)
        found = found or beside.get(nearest(last, beside) or "") or by_name.get(nearest(last, by_name) or "")
        return f"; did you mean {found}?" if found else "."

    def _plain_node(self, name: str, node: Any) -> None:
        if not isinstance(node, Mapping):
            self.lines.append(
                f"{name}: {node!r} is no group of settings; it holds {', '.join(fields_of(self.plain[name]))}."
            )
            return
        self._settings(f"{name}.", node, self.plain[name])
        self.unknown += [f"{name}.{key}" for key in node if key not in fields_of(self.plain[name])]

    def _settings(self, prefix: str, node: Mapping[str, Any], kind: type) -> None:
        for field, annotation in fields_of(kind).items():
            self._known[f"{prefix}{field}"] = None
            if field in node:
                self._value(f"{prefix}{field}", node[field], annotation)
            else:
                self.lines.append(f"{prefix}{field} is missing. Give it a value.")

    def _seat(self, path: str, node: Any, seat: SeatName, group: str) -> None:
        if node is None or node is UNKNOWN:
            return
        if not isinstance(node, Mapping):
            self.lines.append(f"{path}: {node!r} is no part. Choose an option by {group}=OPTION.")
            return
        own = dict(node)
        if seat in MIXED:
            self._settings(f"{path}.", node, MIXED[seat])
            own = own_arguments(node, MIXED[seat])
        if not own and seat in MAY_BE_EMPTY:
            return
        if "_target_" not in own:
            keys = ", ".join(f"{path}.{key}" for key in own)
            said = f"{keys} cannot be set: " if keys else ""
            self.lines.append(f"{said}nothing sits at {path}. Choose an option first, by {group}=OPTION.")
            return
        self._part(path, own, seat, inner=False)

    def _part(self, path: str, node: Mapping[str, Any], seat: SeatName, inner: bool) -> None:
        """A node with `_target_` against the constructor's signature."""
        if node["_target_"] is UNKNOWN:
            return
        try:
            signature = find_target(path, node["_target_"], seat, self.plugin_folders, inner).signature()
        except Mistake as error:
            self.lines.append(str(error))
            return
        for name, argument in signature.arguments.items():
            if name in RUNTIME_ARGUMENTS:
                continue
            self._known[f"{path}.{name}"] = None
            if argument.required and name not in node:
                self.lines.append(f"{path}.{name} is missing: {node['_target_']} needs it. Give it a value.")
        for name, value in node.items():
            if name == "_target_":
                continue
            if name in RUNTIME_ARGUMENTS:
                self.lines.append(f"{path}.{name} is filled in when the run is built. Take it out of the config.")
            elif name in signature.arguments:
                self._argument(f"{path}.{name}", value, signature.arguments[name].annotation, seat)
            elif signature.takes_any_name:
                self._argument(f"{path}.{name}", value, Any, seat)
            else:
                self.unknown.append(f"{path}.{name}")

    def _argument(self, path: str, value: Any, annotation: Any, seat: SeatName) -> None:
        nested = list(nested_parts(path, value))
        told = len(self.lines)
        for inner_path, inner in nested:
            self._part(inner_path, inner, seat, inner=True)
        if nested and nested[0][0] == path and annotation is not Any and told == len(self.lines):
            self.lines.append(f"{path}: {value['_target_']} is a part, and it must be a value. Set {path}=VALUE.")
        if not nested:
            self._value(path, value, annotation)

    def _value(self, path: str, value: Any, annotation: Any) -> None:
        if not holds_unknown(value):
            line = check_value(path, value, annotation)
            if line:
                self.lines.append(line)


def leaf_paths(path: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, one in value.items() for leaf in leaf_paths(f"{path}.{key}", one)]
    return [path]


def nested_parts(path: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with `_target_` at or below a value, the outermost ones."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield path, value
        else:
            for key, one in value.items():
                yield from nested_parts(f"{path}.{key}", one)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from nested_parts(f"{path}.{index}", one)


def holds_unknown(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(holds_unknown(one) for one in value.values())
    return value is UNKNOWN or (isinstance(value, list) and any(holds_unknown(one) for one in value))
