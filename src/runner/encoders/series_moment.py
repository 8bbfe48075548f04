"""MOMENT: patches of a time series through a T5 encoder, with the published checkpoints' names.

Source: Goswami et al., "MOMENT: A Family of Open Time-series Foundation Models", 2024; the package momentfm 0.1.4.
Shapes: N series, C channels, S steps, L steps of a patch, P patches, E width (d_model), W tokens' width: E, or C * E.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from runner import pretrained
from runner.encoders.series import (
    OverLength,
    Reduction,
    SeriesPreprocess,
    additive_mask,
    in_patches,
    normalise,
    over_channels,
    sinusoids,
)
from runner.protocols import Mistake, Tokens

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5Stack

EPSILON = 1e-5
"""Added to a channel's standard deviation."""
POSITIONS = 5000
"""Rows of the published table of positions."""
UNUSED = ("head.", "encoder.embed_tokens.weight")
"""Tensors of a checkpoint that features do not need: what it was pretrained with, and T5's words."""


class Moment(nn.Module):
    """A pretrained MOMENT, from a folder with its config.json and model.safetensors, or a hub name.

    Every channel is encoded apart. As its authors do, a series shorter than the model's 512 steps counts as padded
    before its start, and a patch with a missing step is hidden whole. Patches that are padding in a whole batch are not
    computed: attention is relative and the table of positions is read from the end, so the features are the same.
    """

    def __init__(
        self,
        path: str,
        trainable: bool,
        channels: Annotated[int, Ge(1)] | None,
        reduction: Reduction,
        over_length: OverLength,
        dropout: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        super().__init__()
        file = pretrained.find("encoder.series.path", path, "config.json")
        config = read_config(path, file)
        if reduction == "concat" and channels is None:
            raise Mistake(
                "encoder.series.reduction=concat needs encoder.series.channels, the number to be put in a row."
            )
        embedding = config["t5_config"]["d_model"]
        self.width = embedding * (channels or 1) if reduction == "concat" else embedding
        self.reduction = reduction
        self.patch_length, self.stride = config["patch_len"], config["patch_stride_len"]
        self.most_patches = (config["seq_len"] - self.patch_length) // self.stride + 1
        self.preprocess = SeriesPreprocess(
            self.patch_length,
            self.stride,
            channels,
            longest=self.patch_length + (self.most_patches - 1) * self.stride,
            over_length=over_length,
            aligned="end",
            needs_whole_patch=True,
        )
        with torch.device("meta"):
            self.patch_embedding = PatchEmbedding(
                self.patch_length, embedding, config.get("value_embedding_bias", False), dropout
            )
            self.encoder = encoder_stack(config["t5_config"], dropout)
        self.files: dict[str, str] = {}
        if not pretrained.shapes_alone():
            weights = pretrained.find("encoder.series.path", path, "model.safetensors")
            self.files = pretrained.weight_files(path)
            self.read(path, weights)
        self.requires_grad_(trainable)

    def read(self, path: str, file: Path) -> None:
        """The published layout into this one. Raises `Mistake` naming a tensor that lacks, is unknown or misshapen."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(file)
        except SafetensorError as error:
            raise Mistake(
                f"encoder.series.path={path}: {file.name} is not a whole safetensors file ({error})."
            ) from error
        given = {name: tensor.float() for name, tensor in found.items() if not name.startswith(UNUSED)}
        own = self.state_dict()
        # A table that follows from its size alone may be left out of a file.
        given.setdefault("patch_embedding.position_embedding.pe", sinusoids(POSITIONS, own_width(own)).unsqueeze(0))
        check_names(path, given, own)
        self.load_state_dict(given, assign=True)

    def forward(self, values: Tensor, valid: Tensor, patches: Tensor, **lengths: Tensor) -> Tokens:
        """values [N, C, S], valid bool [N, C, S], patches bool [N, P] -> [N, P, W]; `lengths` of padded ones say no
        more than `valid` and `patches` do."""
        channels = values.shape[1]
        steps = in_patches(normalise(values, valid, EPSILON).values, self.patch_length, self.stride)  # [N, C, P, L]
        whole = in_patches(valid, self.patch_length, self.stride).all(dim=-1)  # [N, C, P]
        places = (
            self.most_patches - patches.sum(dim=1, keepdim=True) + torch.arange(steps.shape[2], device=steps.device)
        )
        embedded = self.patch_embedding(steps, whole, places.clamp(max=self.most_patches - 1))
        features = self.encoder(
            inputs_embeds=embedded.flatten(0, 1), attention_mask=additive_mask(whole.flatten(0, 1))
        ).last_hidden_state.unflatten(0, (-1, channels))  # [N, C, P, E]
        return over_channels(features, whole, self.reduction)


class PatchEmbedding(nn.Module):
    """A patch's values, or the learnt stand-in of a hidden one, and its place. Names as published."""

    def __init__(self, patch_length: int, width: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.value_embedding = nn.Linear(patch_length, width, bias=bias)
        self.mask_embedding = nn.Parameter(torch.zeros(width))
        self.position_embedding = Positions(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, whole: Tensor, places: Tensor) -> Tensor:
        """steps [N, C, P, L], whole bool [N, C, P], places int [N, P] -> [N, C, P, E]"""
        embedded = torch.where(whole.unsqueeze(-1), self.value_embedding(steps), self.mask_embedding)
        return self.dropout(embedded + self.position_embedding.pe[0][places].unsqueeze(1))


class Positions(nn.Module):
    """A table of sinusoids, `pe` [1, 5000, E]."""

    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.zeros(1, POSITIONS, width))


def encoder_stack(given: Mapping[str, Any], dropout: float) -> T5Stack:
    """T5's encoder without its words: relative positions in the first block, RMS norm, gated where the config says."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config.from_dict({**given, "dropout_rate": dropout, "vocab_size": 1})
    stack = T5EncoderModel(config).get_encoder()
    stack.embed_tokens = None
    return stack


def read_config(path: str, file: Path) -> dict[str, Any]:
    """Raises `Mistake` for a config.json that is not MOMENT's, or of a model with parts that are not built here."""
    config = json.loads(file.read_text(encoding="utf-8"))
    sizes = [config.get(name) for name in ("seq_len", "patch_len", "patch_stride_len")]
    inner = config.get("t5_config")
    if not isinstance(inner, dict) or "d_model" not in inner or not all(isinstance(size, int) for size in sizes):
        raise Mistake(
            f"encoder.series.path={path}: config.json is not MOMENT's: it needs seq_len, patch_len, patch_stride_len "
            "and t5_config, as AutonLab/MOMENT-1-small has them."
        )
    length, patch, stride = sizes
    if not 1 <= stride <= patch <= length or (length - patch) // stride + 1 > POSITIONS:
        raise Mistake(
            f"encoder.series.path={path}: config.json has seq_len={length}, patch_len={patch}, "
            f"patch_stride_len={stride}; it must be 1 <= stride <= patch <= length, with {POSITIONS:,} patches at most."
        )
    wanted = {"revin_affine": (False,), "add_positional_embedding": (True,), "transformer_type": ("encoder_only",)}
    for name, known in wanted.items():
        if config.get(name, known[0]) not in known:
            raise Mistake(
                f"encoder.series.path={path}: config.json has {name}={config[name]}; only {known[0]} is built."
            )
    if config.get("d_model") not in (None, inner["d_model"]):
        raise Mistake(
            f"encoder.series.path={path}: config.json has d_model={config['d_model']} and a T5 of {inner['d_model']}."
        )
    return config


def check_names(path: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    said = []
    if missing:
        said.append(f"lacks {len(missing)} of the model's tensors ({missing[0]})")
    if unknown:
        said.append(f"has {len(unknown)} that it does not know ({unknown[0]})")
    if wrong:
        name = wrong[0]
        said.append(f"has {name} of shape {list(given[name].shape)}, not {list(own[name].shape)}")
    if said:
        raise Mistake(f"encoder.series.path={path}: model.safetensors {', '.join(said)}. It is not the config's.")


def own_width(state: Mapping[str, Tensor]) -> int:
    return state["patch_embedding.mask_embedding"].shape[0]
