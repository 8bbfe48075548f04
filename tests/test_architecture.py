"""The house: which room may import which, read from the source. A new file right under src/runner gets a room here."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from runner.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

ROOMS = {
    "front": ("", "__main__", "cli", "completion", "launch", "verbs"),
    "verbs": (
        "processes", "worker", "training", "prepare", "show", "showing.*", "evaluate", "announce", "feed",
        "trained", "evaluate_run", "generate", "predictor", "features", "summary",
    ),
    "run": ("session", "resume", "recording", "restoring"),
    "build": (
        "build", "answering", "labelling", "alignment", "seats", "inventory", "offers", "trial", "model_parts",
        "feature_key", "feature_trial",
    ),
    "composition": (
        "config", "menu", "complaints", "overrides", "quoting", "resolving", "sweep",
        "schema", "targets", "signatures", "annotations", "combinations", "saved_config",
    ),
    "preparing": ("preparing.*",),
    "models": ("models.*",),
    "encoders": ("encoders.*",),
    "projectors": ("projectors.*",),
    "fusion": ("fusion.*",),
    "data": ("data.*",),
    "trackers": ("trackers.*",),
    "clusters": ("clusters.*",),
    "checkpoint": ("checkpoint",),
    "optimizer": ("optimizer", "schedule"),
    "machine": ("run_folder", "folders", "terminal", "precision", "signals", "peers"),
    "ground": (
        "protocols", "records", "settings", "cache", "chosen", "fingerprint", "pretrained", "resampler", "spelling",
    ),
}  # fmt: skip
"""Room: its modules, below `runner`."""

MAY_IMPORT = {
    "front": {"composition", "machine", "ground"},  # verbs by name only, when one is called
    "verbs": {"run", "build", "preparing", "composition", "models", "data", "machine", "ground"},
    "run": {"build", "composition", "checkpoint", "machine", "ground"},
    "build": {"composition", "models", "data", "trackers", "checkpoint", "ground"},
    "composition": {"ground"},
    "preparing": {"data", "ground"},
    "models": {"ground"},
    "encoders": {"ground"},
    "projectors": {"ground"},
    "fusion": {"ground"},
    "data": {"ground"},
    "trackers": {"ground"},
    "clusters": {"ground"},
    "checkpoint": {"ground"},
    "optimizer": {"ground"},
    "machine": {"ground"},
    "ground": set(),
}
"""Arrows run down only. Within a room, files may import each other without a cycle."""

LONGEST_CHAIN = 5

PART_ROOMS = ("encoders", "projectors", "fusion", "trackers", "clusters", "data")
"""A file here that a YAML of conf/ names is a part: it is built from a config, and no file imports it."""

HOMES = {
    "comet_ml": {"trackers.comet"},
    "hydra": {"front", "composition"},
    "omegaconf": {"front", "composition"},
    "transformers": {"models", "encoders", "projectors", "fusion", "pretrained", "resampler"},
    "peft": {"models", "encoders"},
    "tokenizers": {"models", "encoders"},
    "bitsandbytes": {"models.quantization"},
    "datasketch": {"preparing.duplicates"},
    "py3langid": {"preparing.content"},
    "datasets": {"data.hub"},
    "pyarrow": {"data"},
    "qdrant_client": {"data.qdrant"},
}
"""Third party: the rooms or files that may import it; for type checkers alone, any may."""

QUICK_ROOMS = ("front", "composition", "ground")
HEAVY = ("accelerate", "comet_ml", "datasets", "numpy", "peft", "PIL", "sklearn", "tokenizers", "torch", "transformers")
"""Not imported by QUICK_ROOMS at their top: a mistake is told, and help given, before anything heavy is loaded."""

VAGUE = re.compile(r"(^|_)(utils?|common|base|helpers?|managers?|factory|factories|misc)($|_)")


@dataclass(frozen=True)
class Import:
    name: str
    line: int
    for_types: bool
    """Under TYPE_CHECKING: never executed."""
    at_top: bool
    """Executed when the file is imported, not when a function is called."""


def read_imports(text: str, package: str) -> Iterator[Import]:
    """Every import, in functions too, of a file that lies in `package`; `from a import b` gives `a.b`."""

    def inside(node: ast.AST, for_types: bool, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(one.name, node.lineno, for_types, at_top) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            yield from (Import(f"{module}.{one.name}", node.lineno, for_types, at_top) for one in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from inside(child, True, at_top)
            for child in node.orelse:
                yield from inside(child, for_types, at_top)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from inside(child, for_types, at_top and not is_function)

    return inside(ast.parse(text), False, True)


def module_of(file: Path) -> str:
    """Below `runner`: `models.llm`; the package itself is ``."""
    return ".".join(file.relative_to(SOURCE / "runner").with_suffix("").parts).removesuffix("__init__").rstrip(".")


FILES = {module_of(file): file for file in sorted((SOURCE / "runner").rglob("*.py"))}


def own_module(name: str) -> str | None:
    """The module of ours that an imported name is, or stands in; None for a third party's."""
    if name.partition(".")[0] != "runner":
        return None
    parts = name.split(".")[1:]
    while ".".join(parts) not in FILES:
        parts.pop()
    return ".".join(parts)


def room_of(module: str) -> str:
    patterns = (module, f"{module.partition('.')[0]}.*")
    rooms = [room for room, modules in ROOMS.items() if any(pattern in modules for pattern in patterns)]
    assert len(rooms) == 1, f"runner.{module} stands in {rooms or 'no room'}; name exactly one in ROOMS."
    return rooms[0]


IMPORTS = {
    module: list(
        read_imports(file.read_text(), ".".join(["runner", *file.parent.relative_to(SOURCE / "runner").parts]))
    )
    for module, file in FILES.items()
}


def arrows() -> Iterator[tuple[str, Import, str]]:
    """Our own imports: from, import, to."""
    for module, found in IMPORTS.items():
        for one in found:
            other = own_module(one.name)
            if other:
                yield module, one, other


def where(module: str, one: Import) -> str:
    return f"{FILES[module].relative_to(ROOT)}:{one.line} imports {one.name}"


def test_imports_are_read_as_python_does() -> None:
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
else:
    import numpy
class Thing:
    import json
    def method(self):
        from . import llm
        from ..data.rows import Row
"""
    found = {(one.name, one.for_types, one.at_top) for one in read_imports(text, "runner.models")}
    assert found == {
        ("typing.TYPE_CHECKING", False, True),
        ("torch", True, True),
        ("numpy", False, True),
        ("json", False, True),
        ("runner.models.llm", False, False),
        ("runner.data.rows.Row", False, False),
    }


def test_each_file_has_one_room_and_each_room_its_files() -> None:
    for module in FILES:
        room_of(module)
    named = [module for modules in ROOMS.values() for module in modules if not module.endswith(".*")]
    assert [module for module in named if module not in FILES] == []
    assert ROOMS.keys() == MAY_IMPORT.keys()
    assert {room_of(own_module(function.partition(":")[0]) or "") for function in VERBS.values()} == {"verbs"}


def test_arrows_run_down_only() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())  # the table itself has no cycle
    wrong = [
        f"{where(module, one)}: {room_of(module)} may not import {room_of(other)}"
        for module, one, other in arrows()
        if room_of(other) not in {room_of(module), *MAY_IMPORT[room_of(module)]}
    ]
    assert wrong == []


def test_no_import_goes_round() -> None:
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for module, one, other in arrows():
        if not one.for_types and other:  # the package itself is imported with any of its modules
            graph[module].add(other)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"These import each other: {' -> '.join(reversed(error.args[1]))}")


def test_no_chain_of_rooms_is_long() -> None:
    below: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, one, other in arrows():
        if not one.for_types and room_of(module) != room_of(other):
            below[room_of(module)].add(room_of(other))
    below["front"].add("verbs")  # by name

    def longest(room: str, above: frozenset[str] = frozenset()) -> list[str]:
        further = [longest(other, above | {room}) for other in below[room] - above]
        return [room, *max(further, key=len, default=[])]

    chain = max((longest(room) for room in ROOMS), key=len)
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_parts_do_not_know_each_other() -> None:
    nodes = [yaml.safe_load(file.read_text()) for file in (ROOT / "conf").rglob("*.yaml")]
    targets = {target for node in nodes for target in targets_in(node)}
    parts = {module for module in map(own_module, targets) if module and room_of(module) in PART_ROOMS}
    assert {room_of(module) for module in parts} == set(PART_ROOMS)
    assert [where(module, one) for module, one, other in arrows() if other in parts] == []


def targets_in(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets_in(value)


@pytest.mark.parametrize("third_party", HOMES)
def test_a_third_party_stays_in_its_rooms(third_party: str) -> None:
    found = [
        (module, one)
        for module, imports in IMPORTS.items()
        for one in imports
        if one.name.partition(".")[0] == third_party and not one.for_types
    ]
    assert found, f"{third_party} is imported nowhere; take it out of HOMES."
    assert [where(module, one) for module, one in found if not {module, room_of(module)} & HOMES[third_party]] == []


def test_what_checks_a_config_is_quick_to_import() -> None:
    wrong = [
        where(module, one)
        for module, imports in IMPORTS.items()
        for one in imports
        if room_of(module) in QUICK_ROOMS and one.at_top and not one.for_types and one.name.partition(".")[0] in HEAVY
    ]
    assert wrong == []


def test_every_third_party_is_declared() -> None:
    """What a file imports is a dependency of its own, not something that another package happens to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for name, some in project["optional-dependencies"].items() if name != "dev" for one in some),
    ]
    names = {normalized(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in declared}
    roots = {one.name.partition(".")[0] for imports in IMPORTS.values() for one in imports}
    third_parties = roots - sys.stdlib_module_names - {"runner"}
    brought_by = packages_distributions()
    missing = {one for one in third_parties if not names & {normalized(name) for name in brought_by.get(one, [one])}}
    assert missing == set()


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_has_a_vague_name() -> None:
    files = [*(SOURCE / "runner").rglob("*"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert VAGUE.search("data_utils") and not VAGUE.search("database")
    assert [str(file.relative_to(ROOT)) for file in files if VAGUE.search(file.stem)] == []
