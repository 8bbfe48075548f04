"""Convolution blocks on a grid of tokens, with layer norms, so that an item never depends on its batch.

Shapes: N items, h rows and w columns of tokens, C channels; a map is [N, h, w, C].
"""

from __future__ import annotations

from torch import Tensor, nn


class Depthwise(nn.Module):
    """Each channel with its eight neighbours, zeros around the map: [N, h, w, C] -> [N, h / stride, w / stride, C],
    rounded up. Without a bias, as a norm follows."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        convolved: Tensor = self.convolution(seen.permute(0, 3, 1, 2))
        return convolved.permute(0, 2, 3, 1)


class Excitation(nn.Module):
    """Each channel times a gate of what the whole item has: [N, h, w, C] -> [N, h, w, C].

    Source: Hu et al., "Squeeze-and-Excitation Networks", 2018.
    """

    def __init__(self, width: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        hidden_size = max(width // 4, 1)
        self.layers = nn.Sequential(nn.Linear(width, hidden_size), activation, nn.Linear(hidden_size, width), gate)

    def forward(self, seen: Tensor) -> Tensor:
        gates: Tensor = self.layers(seen.mean((1, 2), keepdim=True))
        return seen * gates


class Bottleneck(nn.Module):
    """Pointwise, depthwise and pointwise layers and a way around them: [N, h, w, C] -> [N, h, w, width].

    Source: the Y block of Radosavovic et al., "Designing Network Design Spaces", 2020, each group a channel wide.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(width_in, width, bias=False), nn.LayerNorm(width), nn.SiLU()),
            *(Depthwise(width, stride=1), nn.LayerNorm(width), nn.SiLU(), Excitation(width, nn.SiLU(), nn.Sigmoid())),
            *(nn.Linear(width, width, bias=False), nn.LayerNorm(width)),
        )
        self.around: nn.Module = nn.Identity()
        if width_in != width:
            self.around = nn.Sequential(nn.Linear(width_in, width, bias=False), nn.LayerNorm(width))
        self.activation = nn.SiLU()

    def forward(self, seen: Tensor) -> Tensor:
        given: Tensor = self.activation(self.layers(seen) + self.around(seen))
        return given


def separable(width: int, stride: int) -> nn.Sequential:
    """A depthwise and a pointwise layer, as MobileVLM has them after Howard et al., "Searching for MobileNetV3", 2019:
    [N, h, w, C] -> [N, h / stride, w / stride, C], rounded up."""
    return nn.Sequential(
        *(Depthwise(width, stride), nn.LayerNorm(width), nn.Hardswish()),
        Excitation(width, nn.ReLU(), nn.Hardsigmoid()),
        *(nn.Linear(width, width, bias=False), nn.LayerNorm(width)),
    )
