"""Frozen means: no gradient, dropout off, normalisation statistics fixed, whatever mode the rest of the model is in."""

from __future__ import annotations

from types import MethodType

from torch import nn


def keep_frozen(model: nn.Module) -> None:
    """Put every module whose parameters are all frozen into evaluation mode for good."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
            for part in module.modules():
                part.train = MethodType(stay, part)  # type: ignore[method-assign]


def stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
