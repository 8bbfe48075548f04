"""What a constructor takes, read from its source without importing it: importing torch alone takes seconds.

Annotations are evaluated with the names of a few quick modules; one that needs another name means "anything".
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.protocols import Mistake
from runner.spelling import did_you_mean

RUNTIME_ARGUMENTS = (
    "encoder_width",
    "llm_width",
    "parameters",
    "streaming",
    "tokenizer",
    "chat",
    "llm",
    "encoders",
    "projectors",
    "fusion",
    "widths",
    "modalities",
    "rows",
    "memory",
    "seed",
)
"""Arguments that are filled when a run is built: a config neither gives nor misses them."""

QUICK_MODULES = ("annotated_types", "collections.abc", "pathlib", "runner.settings", "typing")


@dataclass(frozen=True)
class Argument:
    annotation: Any
    required: bool


@dataclass(frozen=True)
class Signature:
    arguments: Mapping[str, Argument]
    takes_any_name: bool = False
    """It has **keyword arguments."""


def read_signature(file: Path, name: str) -> Signature | None:
    """Of the class or function `name` that `file` defines; None when a base class from elsewhere has the constructor.

    Raises `Mistake` when the file does not parse or defines no such name.
    """
    module = _parse(file, file.stat().st_mtime_ns)
    node = module.definitions.get(name)
    if node is None:
        hint = did_you_mean(name, [one for one in module.definitions if not one.startswith("_")])
        raise Mistake(f"{file} defines no {name}{hint}")
    if isinstance(node, ast.FunctionDef):
        return _signature_of_function(node, module.names, skip_self=False)
    return _signature_of_class(node, module)


def is_function(file: Path, name: str) -> bool:
    return isinstance(_parse(file, file.stat().st_mtime_ns).definitions.get(name), ast.FunctionDef)


def inspect_signature(target: Any) -> Signature:
    """Of an imported object. Annotations of third parties are loose, so only names are held against them.

    `params`, as torch.optim says it, is our `parameters`.
    """
    arguments, takes_any_name = {}, False
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any_name = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            name = "parameters" if parameter.name == "params" else parameter.name
            arguments[name] = Argument(Any, parameter.default is parameter.empty)
    return Signature(arguments, takes_any_name)


@dataclass(frozen=True)
class _Module:
    definitions: Mapping[str, ast.FunctionDef | ast.ClassDef]
    names: Mapping[str, Any]
    """What annotations may use."""


@functools.cache
def _parse(file: Path, changed: int) -> _Module:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except SyntaxError as error:
        raise Mistake(f"{file}:{error.lineno} is not Python: {error.msg}.") from error
    definitions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return _Module(definitions, dict(_names_of(tree)))


def _names_of(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    names: dict[str, Any] = {one.__name__: one for one in (int, float, str, bool, list, dict, tuple, set)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in QUICK_MODULES:
            module = importlib.import_module(node.module)
            names |= {
                one.asname or one.name: getattr(module, one.name) for one in node.names if hasattr(module, one.name)
            }
        elif isinstance(node, ast.Import):
            quick = [one for one in node.names if one.name in QUICK_MODULES and (one.asname or "." not in one.name)]
            names |= {one.asname or one.name: importlib.import_module(one.name) for one in quick}
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _evaluate(node.value, names)
            if value is not Any:
                names[node.targets[0].id] = value
    yield from names.items()


def _evaluate(expression: ast.expr | None, names: Mapping[str, Any]) -> Any:
    """A type, or Any when it is none or needs an unknown name. Only names, subscripts and calls of limits run."""
    if expression is None:
        return Any
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        try:
            expression = ast.parse(expression.value, mode="eval").body
        except SyntaxError:
            return Any
    allowed = (
        ast.Name,
        ast.Attribute,
        ast.Subscript,
        ast.BinOp,
        ast.Tuple,
        ast.List,
        ast.Constant,
        ast.Call,
        ast.keyword,
    )
    parts = (*allowed, ast.BitOr, ast.Sub, ast.Pow, ast.UnaryOp, ast.USub, ast.Load)
    if not all(isinstance(node, parts) for node in ast.walk(expression)):
        return Any
    try:
        return eval(compile(ast.Expression(expression), "<annotation>", "eval"), {"__builtins__": {}}, dict(names))
    except Exception:  # whatever a foreign annotation raises, its constructor will judge the value itself
        return Any


def _signature_of_function(node: ast.FunctionDef, names: Mapping[str, Any], skip_self: bool) -> Signature:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_self else 0 :]
    pairs += list(zip(given.kwonlyargs, given.kw_defaults, strict=True))
    arguments = {one.arg: Argument(_evaluate(one.annotation, names), default is None) for one, default in pairs}
    return Signature(arguments, given.kwarg is not None)


def _signature_of_class(node: ast.ClassDef, module: _Module) -> Signature | None:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _signature_of_function(member, module.names, skip_self=True)
    inherited = Signature({})
    for base in node.bases:
        name = ast.unparse(base).rsplit(".", 1)[-1]
        if name in ("Module", "object", "ABC", "Protocol", "Generic"):
            continue
        parent = module.definitions.get(name)
        signature = _signature_of_class(parent, module) if isinstance(parent, ast.ClassDef) else None
        if signature is None:
            return None
        inherited = signature
    if any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        return Signature({**inherited.arguments, **_dataclass_fields(node, module.names)})
    return inherited


def _dataclass_fields(node: ast.ClassDef, names: Mapping[str, Any]) -> dict[str, Argument]:
    fields = {}
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            kind = ast.unparse(member.annotation)
            if "ClassVar" not in kind and not (
                isinstance(member.value, ast.Call) and "init=False" in ast.unparse(member.value)
            ):
                has_default = member.value is not None and _field_has_default(member.value)
                fields[member.target.id] = Argument(_evaluate(member.annotation, names), not has_default)
    return fields


def _field_has_default(value: ast.expr) -> bool:
    """`= field(...)` has one only with default or default_factory; any other value is one."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        return any(one.arg in ("default", "default_factory") for one in value.keywords)
    return True
