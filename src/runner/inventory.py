"""What a run is made of: parameters by component, and hashes of its rows and of its weights' files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import nn

from runner.models.lora import matches
from runner.protocols import Objective


@dataclass(frozen=True)
class Component:
    name: str
    kind: str
    trainable: int
    frozen: int


def components_of(objective: Objective) -> list[Component]:
    """Parameters by component: each encoder, projector, the fusion, the language model and its LoRA, and what the
    objective has of its own."""
    module = cast(nn.Module, objective)
    own = list(module.parameters(recurse=False))
    groups: dict[str, tuple[str, list[nn.Parameter]]] = {"model": (type(module).__name__, own)} if own else {}
    for name, child in module.named_children():
        parts = parts_of(name, child)
        for key, part in parts.items():
            kind = getattr(part, "family", type(part).__name__)  # a loaded one is known by its architecture
            for parameter_name, parameter in part.named_parameters():
                is_lora = "lora_" in parameter_name
                groups.setdefault("lora" if is_lora else key, ("LoRA" if is_lora else kind, []))[1].append(parameter)
    return [
        Component(
            name,
            kind,
            trainable=sum(weights_in(parameter) for parameter in parameters if parameter.requires_grad),
            frozen=sum(weights_in(parameter) for parameter in parameters if not parameter.requires_grad),
        )
        for name, (kind, parameters) in groups.items()
    ]


def weights_in(parameter: nn.Parameter) -> int:
    """Of one in 4 bits, too, whose tensor holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def adapted_by(objective: Objective) -> list[Component]:
    """Of LoRA, what each of its patterns matched: how many modules, and the parameters of their adapters."""
    modules = dict(cast(nn.Module, objective).named_modules())
    config = next((one.peft_config["default"] for one in modules.values() if "peft_config" in vars(one)), None)
    found = []
    for pattern in sorted(getattr(config, "target_modules", None) or ()):
        matched = [
            [weight for key, weight in module.named_parameters() if "lora_" in key]
            for name, module in modules.items()
            if matches(name, pattern) and hasattr(module, "base_layer")
        ]
        count = f"{len(matched):,} module{'s' if len(matched) != 1 else ''}"
        weights = [weight for some in matched for weight in some]
        trainable = sum(weight.numel() for weight in weights if weight.requires_grad)
        found.append(Component(pattern, count, trainable, sum(weight.numel() for weight in weights) - trainable))
    return found


def parts_of(name: str, child: nn.Module) -> dict[str, nn.Module]:
    """A part for each modality (`encoder.image`), or the one that several share (`projector`)."""
    if not isinstance(child, nn.ModuleDict):
        return {name: child}
    if len(child) > 1 and len(set(child.values())) == 1:
        return {name: next(iter(child.values()))}
    return {f"{name}.{key}": part for key, part in child.items()}


def files_of(objective: Objective) -> dict[str, dict[str, str]]:
    """sha256 of the weight files of every part that has files of its own."""
    modules = cast(nn.Module, objective).named_modules()
    return {name: dict(module.files) for name, module in modules if getattr(module, "files", None)}
