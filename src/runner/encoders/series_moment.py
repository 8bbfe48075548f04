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
BUILT = {"revin_affine": False, "add_positional_embedding": True, "transformer_type": "encoder_only"}
"""Fields of a config.json with which a model is built here, and what one that lacks them means."""
FIELDS = ("seq_len", "patch_len", "patch_stride_len", "value_embedding_bias", "t5_config", *BUILT)
"""What an architecture may say."""
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
        architecture: Mapping[str, Any] | None,
        trainable: bool,
        channels: Annotated[int, Ge(1)] | None,
        reduction: Reduction,
        over_length: OverLength,
        dropout: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        super().__init__()
        config = find_config(path, architecture)
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

    config = T5Config.from_dict({**given, "dropout_rate": dropout, "vocab_size": 1, "eos_token_id": 0})
    stack = T5EncoderModel(config).get_encoder()
    stack.embed_tokens = None
    return stack


def find_config(path: str, architecture: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The folder's config.json, which must agree with an `architecture`; that alone where no weights will be read."""
    if architecture is not None:
        check_architecture(architecture)
        if pretrained.shapes_alone():
            return architecture
    file = pretrained.find("encoder.series.path", path, "config.json")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    check_config(f"encoder.series.path={path}: config.json", config)
    if architecture is not None:
        wanted, found = values_of(architecture, architecture), values_of(config, architecture)
        pretrained.check_agrees("encoder.series", "encoder/series=moment", path, wanted, found)
    return config


def check_architecture(given: Mapping[str, Any]) -> None:
    """Raises `Mistake` for fields that MOMENT's config.json does not have, or that nothing can be built of."""
    setting = "encoder.series.architecture"
    pretrained.check_known(setting, given, FIELDS, "MOMENT's config.json")
    check_config(setting, given)
    pretrained.config_of(f"{setting}.t5_config", {**given["t5_config"], "model_type": "t5"})


def values_of(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the fields of an architecture, `t5_config.d_ff` for instance; defaults are filled in."""
    from transformers import T5Config

    own = {name: config.get(name, BUILT.get(name, False)) for name in fields if name != "t5_config"}
    inner = pretrained.values_of(T5Config.from_dict(dict(config["t5_config"])), fields["t5_config"])
    return own | {f"t5_config.{name}": value for name, value in inner.items()}


def check_config(where: str, config: Mapping[str, Any]) -> None:
    """Raises `Mistake` for what is no config.json of MOMENT's, or is of a model with parts that are not built here."""
    sizes: list[Any] = [config.get(name) for name in ("seq_len", "patch_len", "patch_stride_len")]
    inner = config.get("t5_config")
    if not isinstance(inner, Mapping) or "d_model" not in inner or not all(isinstance(size, int) for size in sizes):
        raise Mistake(
            f"{where} is not MOMENT's: it needs seq_len, patch_len, patch_stride_len and t5_config, as "
            "AutonLab/MOMENT-1-small has them."
        )
    length, patch, stride = sizes
    if not 1 <= stride <= patch <= length or (length - patch) // stride + 1 > POSITIONS:
        raise Mistake(
            f"{where} has seq_len={length}, patch_len={patch}, patch_stride_len={stride}; it must be "
            f"1 <= stride <= patch <= length, with {POSITIONS:,} patches at most."
        )
    for name, known in BUILT.items():
        if config.get(name, known) != known:
            raise Mistake(f"{where} has {name}={config[name]}; only {known} is built.")
    if config.get("d_model") not in (None, inner["d_model"]):
        raise Mistake(f"{where} has d_model={config['d_model']} and a T5 of {inner['d_model']}.")


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
