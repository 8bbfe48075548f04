"""Any vision model of transformers, with the preprocessing that its folder names.

Shapes: N pictures, C channels, H and W pixels of a side, T tokens, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from runner import pretrained
from runner.encoders.loaded import LoadedEncoder, tokens_of
from runner.protocols import Mistake, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_FIRST_TOKENS = 16
"""Class and register tokens that a vision transformer may have before its patches."""
OTHER_ORDER = ("vit_mae", "yolos")
"""Families with patches in a random order, and with tokens of no patch at the end."""


@dataclass(frozen=True)
class FolderPreprocess:
    """A picture to what the folder's image processor makes of it: `pixel_values` [C, H, W] for nearly all."""

    processor: Any

    def __call__(self, picture: Image) -> dict[str, Tensor]:
        # Numbers, not tensors, of the processor: it would make them on whatever device is torch's default.
        inputs = self.processor(picture.convert("RGB"), return_tensors="np")
        return {name: torch.from_numpy(value[0]) for name, value in inputs.items()}


class HfVision(LoadedEncoder):
    """A vision model of transformers, or the vision tower of one of several modalities; all its tokens."""

    def __init__(
        self,
        path: str,
        trainable: bool,
        dtype: Literal["float32", "bfloat16", "float16"],
        pool: Literal["none", "mean", "cls"],
    ) -> None:
        from PIL import Image
        from transformers import AutoImageProcessor

        # The backend without torchvision; it gives what the other does within a grey level.
        setting = "encoder.image.path"
        read = AutoImageProcessor.from_pretrained
        preprocess = FolderPreprocess(pretrained.read(setting, path, "an image processor", read, backend="pil"))
        with torch.device("cpu"):
            wide, high = (preprocess(Image.new("RGB", size)) for size in ((96, 64), (64, 96)))
        if any(wide[name].shape != high[name].shape for name in wide):
            raise Mistake(
                f"{setting}={path}: its preprocessing keeps the shape of a picture, so pictures cannot share a "
                "batch. Give preprocessor_config.json a size with height and width, or a crop_size."
            )
        super().__init__("image", path, trainable, dtype, pool, {name: one.unsqueeze(0) for name, one in wide.items()})
        self.preprocess = preprocess

    def forward(self, **inputs: Tensor) -> Tokens:
        """pixel_values [N, C, H, W] -> [N, T, E]; T is 1 with `pool`"""
        if self.gives_map:
            # Convolutions keep the order of their input: with channels last, a picture of MobileNet or ResNet-18 takes
            # a CPU 0.8 to 0.9 times as long, forward and backward.
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        states = self.states(**inputs)
        mask = inputs.get("pixel_attention_mask")  # of families that cut a picture into a number of patches of its own
        grid = self.grid_of(states, inputs["pixel_values"]) if mask is None else None
        return self.pooled(tokens_of(states), None if mask is None else mask.bool(), grid)

    def grid_of(self, states: Tensor, pixel_values: Tensor) -> tuple[int, int] | None:
        """Of the last hidden state: a convolution's map, or the patches of a vision transformer after a few tokens that
        are of no patch. None where it is not sure: hierarchical families have fewer tokens than first patches."""
        if states.dim() == 4:
            return states.shape[2], states.shape[3]
        size: Any = getattr(self.model.config, "patch_size", None)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        whole = len(sides) == 2 and all(isinstance(one, int) for one in sides) and pixel_values.dim() == 4
        if not whole or self.model.config.model_type in OTHER_ORDER:
            return None
        rows, columns = pixel_values.shape[2] // sides[0], pixel_values.shape[3] // sides[1]
        first = states.shape[1] - rows * columns
        return (rows, columns) if 0 <= first <= min(MOST_FIRST_TOKENS, rows * columns - 1) else None
