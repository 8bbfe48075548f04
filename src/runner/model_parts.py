"""Learning rates and freezing by part of the model: `train.parts` held against the model that was built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from runner.combinations import parts_named
from runner.protocols import Mistake
from runner.settings import Part
from runner.spelling import did_you_mean

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class ModelPart:
    """A module, without those of its own that `train.parts` names apart."""

    name: str
    given: Part
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    """Those that train."""

    def is_frozen(self, step: int) -> bool:
        """At optimizer step `step`, counted from 0."""
        until = self.given.until_step
        return step < self.given.from_step or (until is not None and step >= until)


def parts_of(model: nn.Module, tree: Mapping[str, Any]) -> tuple[ModelPart, ...]:
    """`tree` is train.parts. Raises `Mistake` for a name that is no part, or one of which nothing trains."""
    free = {"lr": None, "from_step": 0, "until_step": None}
    named = {name: Part(**{**free, **node}) for name, node in parts_named(tree)}
    modules = dict(model.named_modules())
    for name in named:
        if name not in modules:
            near = [one for one in modules if one.count(".") <= max(name.count("."), 1)]
            raise Mistake(f"train.parts.{name}: the model has no such part{did_you_mean(name, near)}")
    trained = {key: one for key, one in model.named_parameters() if one.requires_grad}
    owned = {name: [one for key, one in trained.items() if owner_of(key, named) == name] for name in named}
    for name, parameters in owned.items():
        if not parameters:
            inner = [f"train.parts.{one}" for one in named if one.startswith(f"{name}.") and owned[one]]
            said = f"all of it that trains belongs to {', '.join(inner)}" if inner else "nothing of it trains"
            raise Mistake(f"train.parts.{name}: {said}, so there is nothing to set.")
    inside = {name: tuple(one for key, one in modules.items() if owner_of(key, named) == name) for name in named}
    parts = tuple(ModelPart(name, one, inside[name], tuple(owned[name])) for name, one in named.items())
    check_something_trains(model, parts)
    return parts


def owner_of(key: str, names: Iterable[str]) -> str | None:
    """The longest name that a parameter or module is, or stands under."""
    return max((name for name in names if f"{key}.".startswith(f"{name}.")), key=len, default=None)


def check_something_trains(model: nn.Module, parts: tuple[ModelPart, ...]) -> None:
    held = {id(one) for part in parts for one in part.parameters}
    if any(one.requires_grad and id(one) not in held for one in model.parameters()):
        return
    changes = sorted({0, *(part.given.from_step for part in parts), *(part.given.until_step or 0 for part in parts)})
    for step in changes:
        if all(part.is_frozen(step) for part in parts):
            raise Mistake(f"train.parts: every part that trains is frozen at step {step}. Leave one free.")


def group_by_part(optimizer: Optimizer, parts: tuple[ModelPart, ...]) -> None:
    """Give parts that have a learning rate of their own groups of their own; `peak_lr` is where a schedule starts."""
    rates = {id(one): part.given.lr for part in parts if part.given.lr for one in part.parameters}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for one in group["params"]:
            by_rate.setdefault(rates.get(id(one), group["lr"]), []).append(one)
        groups += [{**group, "params": some, "lr": rate, "peak_lr": rate} for rate, some in by_rate.items()]
    # In place: a wrapped optimizer's list is the one that its wrapper shows. Parts come last: the first one is logged.
    own = set(rates.values())
    optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] in own)


@contextmanager
def frozen_at(step: int, parts: tuple[ModelPart, ...]) -> Iterator[None]:
    """While the step is taken, its frozen parts have no gradient, no dropout and fixed statistics."""
    held = [part for part in parts if part.is_frozen(step)]
    modes = {module: module.training for part in held for module in part.modules}
    for part in held:
        for one in part.parameters:
            one.requires_grad_(False)
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for part in held:
            for one in part.parameters:
                one.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
