"""Sounds to tokens from scratch: a log-mel spectrogram, and a small transformer over patches of frames.

Shapes: N sounds, F frames, M mel bands, T tokens, E width.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from runner.encoders.sound import Mono
from runner.protocols import Mistake, Tokens

QUIETEST = 1e-10
"""Power below this is silence: -100 dB of a full-scale tone."""


@dataclass(frozen=True)
class LogMel:
    """A sound to `frames` [F, M]: log power in mel bands, scaled to mean 0 and deviation 1 over the sound."""

    mono: Mono
    window: int
    """Samples of a frame; also those of its Fourier transform."""
    hop: int
    filters: np.ndarray = field(repr=False)
    """float32 [window // 2 + 1, M]"""

    def __call__(self, sound: tuple[np.ndarray, int]) -> dict[str, Tensor]:
        samples = self.mono(sound)
        # The last frame is filled up with silence, so that no sample is lost and no sound is too short.
        frames = 1 + max(0, math.ceil((len(samples) - self.window) / self.hop))
        samples = np.pad(samples, (0, (frames - 1) * self.hop + self.window - len(samples)))
        pieces = np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.hop]
        spectrum = np.fft.rfft(pieces * np.hanning(self.window + 1)[:-1].astype(np.float32))
        power = (spectrum.real**2 + spectrum.imag**2) / self.window
        mel = np.log(np.maximum(power @ self.filters, QUIETEST))
        mel = (mel - mel.mean()) / (mel.std() + 1e-5)
        return {"frames": torch.from_numpy(mel.astype(np.float32))}


class Spectrogram(nn.Module):
    """Frames in groups of `patch_frames` -> a token each; sinusoidal positions, pre-norm layers.

    Source: Gong et al., "AST: Audio Spectrogram Transformer", 2021, with patches as high as the spectrogram.
    """

    def __init__(
        self,
        rate: Annotated[int, Ge(1000)],
        window: Annotated[int, Ge(2)],
        hop: Annotated[int, Ge(1)],
        mel_bands: Annotated[int, Ge(1)],
        max_seconds: Annotated[float, Gt(0)],
        over_length: Literal["error", "cut"],
        patch_frames: Annotated[int, Ge(1)],
        hidden_size: Annotated[int, Ge(2)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        dropout: Annotated[float, Ge(0), Lt(1)],
        initializer_range: Annotated[float, Gt(0)],
    ) -> None:
        super().__init__()
        if hidden_size % heads:
            raise Mistake(f"encoder.audio.heads={heads} does not divide encoder.audio.hidden_size={hidden_size}.")
        if hidden_size % 2:
            raise Mistake(f"encoder.audio.hidden_size={hidden_size} is odd; positions are pairs of sine and cosine.")
        self.width = hidden_size
        self.patch_frames = patch_frames
        filters = mel_filters(rate, window, mel_bands)
        self.preprocess = LogMel(Mono(rate, max_seconds, over_length), window, hop, filters)
        self.patches = nn.Linear(patch_frames * mel_bands, hidden_size)
        layer = nn.TransformerEncoderLayer(
            hidden_size, heads, 4 * hidden_size, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        # TransformerEncoder copies one layer, so each would start from the same numbers.
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=initializer_range)

    def forward(self, frames: Tensor, frames_lengths: Tensor | None = None) -> Tokens:
        """frames [N, F, M] -> [N, T, E] with T = ceil(F / patch_frames)"""
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % self.patch_frames))
        features = self.patches(frames.reshape(len(frames), -1, self.patch_frames * frames.shape[2]))
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if frames_lengths is not None:
            tokens = (frames_lengths + self.patch_frames - 1) // self.patch_frames
            mask = torch.arange(features.shape[1], device=features.device) < tokens.unsqueeze(1)
        features = features + sinusoids(features.shape[1], self.width, features.device)
        padding = None if frames_lengths is None else ~mask
        features = self.layers(features, src_key_padding_mask=padding)
        return Tokens(features.masked_fill(~mask.unsqueeze(-1), 0.0), mask)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """[length, width]: sines, then cosines, of wavelengths from 2 pi to 20,000 pi tokens."""
    rates = torch.exp(torch.arange(width // 2, device=device) * (-math.log(10_000) / max(1, width // 2 - 1)))
    angles = torch.arange(length, device=device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def mel_filters(rate: int, window: int, bands: int) -> np.ndarray:
    """float32 [window // 2 + 1, M]: triangles, equally wide in mel. Raises `Mistake` where one has no bin."""
    from transformers.audio_utils import mel_filter_bank

    bank: Any = mel_filter_bank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty bands, which are told below
        filters = bank(
            num_frequency_bins=window // 2 + 1,
            num_mel_filters=bands,
            min_frequency=0.0,
            max_frequency=rate / 2,
            sampling_rate=rate,
            norm="slaney",
            mel_scale="slaney",
        ).astype(np.float32)
    if (filters.max(axis=0) == 0).any():
        raise Mistake(
            f"encoder.audio.mel_bands={bands} are more than a window of {window} samples can tell apart at {rate} Hz; "
            "lower mel_bands or raise window."
        )
    return filters
