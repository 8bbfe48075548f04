"""PatchTST and PatchTSMixer of transformers: their patches' hidden states as tokens.

Sources: Nie et al., "A Time Series is Worth 64 Words", 2023; Ekambaram et al., "TSMixer", 2023.
Shapes: N series, C channels, S steps (the model's context length), P patches, E width, W tokens' width: E, or C * E.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from runner import pretrained
from runner.encoders.series import (
    OverLength,
    Reduction,
    SeriesPreprocess,
    additive_mask,
    in_patches,
    over_channels,
)
from runner.protocols import Mistake, Tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KNOWN = ("patchtst", "patchtsmixer")


class PretrainedSeries(nn.Module):
    """A pretrained PatchTST or PatchTSMixer, from a folder or hub name, without its head.

    PatchTST takes shorter series and missing values: a patch with a missing step is hidden from attention, which
    transformers' own does not do. PatchTSMixer, and a PatchTST whose channels see each other, mix all that they are
    given, so they take whole windows only. Batch normalisation keeps the checkpoint's statistics in training too: else
    features would depend on the other rows of a batch.
    """

    def __init__(self, path: str, trainable: bool, reduction: Reduction, over_length: OverLength) -> None:
        super().__init__()
        folder = pretrained.find("encoder.series.path", path, "config.json").parent
        config = read_config(path, folder)
        channels = int(config.num_input_channels)
        self.reduction = reduction
        self.width = int(config.d_model) * (channels if reduction == "concat" else 1)
        self.length = int(config.context_length)
        self.patch_length, self.stride = int(config.patch_length), int(config.patch_stride)
        self.mixes = config.model_type == "patchtsmixer" or bool(config.channel_attention)
        self.preprocess = SeriesPreprocess(
            self.patch_length,
            self.stride,
            channels,
            longest=self.length,
            over_length=over_length,
            aligned="end",
            needs_whole_patch=True,
            whole=self.mixes,
        )
        self.files: dict[str, str] = {}
        if pretrained.shapes_alone():
            self.model = class_of(config)(config)
        else:
            self.files = pretrained.weight_files(path)
            self.model = self.read(path, config)
        self.hidden: Tensor | None = None
        if not self.mixes:
            for layer in self.model.encoder.layers:
                layer.self_attn.register_forward_pre_hook(self.hide, with_kwargs=True)
        self.requires_grad_(trainable)

    def read(self, path: str, config: PretrainedConfig) -> PreTrainedModel:
        from transformers.utils import logging

        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # else every tensor of the head, which is left out on purpose, is reported
        try:
            model, loaded = class_of(config).from_pretrained(
                path, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise Mistake(f"encoder.series.path={path}: no weights could be read: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(loaded["missing_keys"]):
            raise Mistake(
                f"encoder.series.path={path}: the folder lacks {len(missing)} of the model's tensors ({missing[0]}), "
                "which would be random. Give one with all its weights."
            )
        return model

    def train(self, mode: bool = True) -> PretrainedSeries:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def hide(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Give attention over patches the mask that its layer does not hand on."""
        return arguments, {**named, "attention_mask": self.hidden}

    def forward(self, values: Tensor, valid: Tensor, patches: Tensor, **lengths: Tensor) -> Tokens:
        """values [N, C, S'], valid bool [N, C, S'], patches bool [N, P'] -> [N, P, W]; `lengths` of padded ones say no
        more than `valid` and `patches` do."""
        values, valid = self.to_the_end(values, valid, patches)
        observed = valid.transpose(1, 2)
        start = (self.length - self.patch_length) % self.stride  # the model leaves out what fills no patch
        whole = in_patches(valid[..., start:], self.patch_length, self.stride).all(dim=-1)  # [N, C, P]
        name = "observed_mask" if self.model.config.model_type == "patchtsmixer" else "past_observed_mask"
        token = bool(getattr(self.model.config, "use_cls_token", False))
        seen = torch.cat([whole.any(dim=-1, keepdim=True), whole], dim=-1) if token else whole
        self.hidden = additive_mask(seen.flatten(0, 1))
        try:
            features = self.model(past_values=values.transpose(1, 2), **{name: observed}).last_hidden_state
        finally:
            self.hidden = None
        return over_channels(features[:, :, 1:] if token else features, whole, self.reduction)

    def to_the_end(self, values: Tensor, valid: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Each series at the end of the model's window, [N, C, S]: a batch is padded after them, the model before."""
        length = self.patch_length + (patches.sum(dim=1) - 1) * self.stride  # [N]
        source = torch.arange(self.length, device=values.device) - self.length + length.unsqueeze(1)  # [N, S]
        inside = (source >= 0).unsqueeze(1)
        source = source.clamp(min=0, max=values.shape[-1] - 1).unsqueeze(1).expand(-1, values.shape[1], -1)
        valid = valid.gather(-1, source) & inside
        return torch.where(valid, values.gather(-1, source), values.new_zeros(())), valid


def class_of(config: PretrainedConfig) -> Any:
    from transformers import PatchTSMixerModel, PatchTSTModel

    return PatchTSMixerModel if config.model_type == "patchtsmixer" else PatchTSTModel


def read_config(path: str, folder: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise Mistake(f"encoder.series.path={path}: config.json could not be read: {error}") from error
    if config.model_type not in KNOWN:
        raise Mistake(
            f"encoder.series.path={path}: a {config.model_type} is none of {', '.join(KNOWN)}, which have patches."
        )
    config.do_mask_input = False  # masking at random is for pretraining
    return config
