"""Any audio encoder of transformers, with the feature extractor and the rate that its folder names.

Two kinds. Those that take a sound as long as it is (wav2vec2, HuBERT, WavLM, ...) are padded in a batch and masked; a
family whose features change with the padding beside them, which each model is asked when it is built, runs one length
at a time. Those with a fixed window (Whisper 30 s, AST, CLAP 10 s) have it filled up with silence, or for CLAP with the
sound again: they were trained to read the filled window, so they do here.

Shapes: N sounds, S samples or frames, T tokens, E width.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from runner import pretrained
from runner.encoders.loaded import LoadedEncoder
from runner.encoders.masked_norm import lengths_known, mask_norms
from runner.encoders.sound import Mono
from runner.protocols import Fault, Mistake, Tokens

TRIED_SECONDS = (0.6, 0.7123, 0.8571, 1.0)
"""The sounds by which a model is asked how it takes lengths and padding."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference, relative to the largest feature, between a sound alone and in a padded batch."""


@dataclass(frozen=True)
class FolderPreprocess:
    """A sound to what the folder's feature extractor makes of it: `sound` [S, ...], and where a fixed window is filled
    up and the extractor tells how far, `size` int64: its frames without the filling."""

    extractor: Any
    mono: Mono
    fixed: bool
    shortest: int
    """Samples that give one token."""

    def __call__(self, sound: tuple[np.ndarray, int]) -> dict[str, Tensor]:
        samples = self.mono(sound)
        if len(samples) < self.shortest:
            has = f"{len(samples)} samples at {self.mono.rate:,} Hz"
            raise Mistake(f"it has {has}, and the model needs {self.shortest} for a token.")
        return self.features(samples)

    def features(self, samples: np.ndarray) -> dict[str, Tensor]:
        given = self.extractor(samples, sampling_rate=self.mono.rate, return_tensors="np", return_attention_mask=True)
        name = next(one for one in ("input_values", "input_features") if one in given)
        inputs = {"sound": torch.from_numpy(np.asarray(given[name][0], dtype=np.float32))}
        if "attention_mask" in given:
            size = int(np.asarray(given["attention_mask"][0]).sum())
            if self.fixed:
                inputs["size"] = torch.tensor(size, device="cpu")
            else:  # some fill up to an even number of frames
                inputs["sound"] = inputs["sound"][:size]
        if "is_longer" in given:  # CLAP: which sounds its fusion of several windows is for
            inputs["is_longer"] = torch.from_numpy(np.asarray(given["is_longer"][0], dtype=bool))
        return inputs


class HfAudio(LoadedEncoder):
    """An audio encoder of transformers, or the audio tower of a model with more."""

    option = "encoder/audio=hf_audio"

    def __init__(
        self,
        path: str,
        trainable: bool,
        dtype: Literal["float32", "bfloat16", "float16"],
        pool: Literal["none", "mean", "cls"],
        max_seconds: Annotated[float, Gt(0)] | None,
        over_length: Literal["error", "cut"],
    ) -> None:
        from transformers import AutoFeatureExtractor

        setting = "encoder.audio.path"
        extractor = pretrained.read(setting, path, "a feature extractor", AutoFeatureExtractor.from_pretrained)
        rate = getattr(extractor, "sampling_rate", None)
        if not rate:
            raise Mistake(f"{setting}={path}: {type(extractor).__name__} names no sampling rate; it is not for sounds.")
        noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32) / 10
        tried = [noise[: int(seconds * rate)] for seconds in TRIED_SECONDS]
        try:
            name = extractor.model_input_names[0]
            shapes = {np.shape(extractor(one, sampling_rate=rate, return_tensors="np")[name]) for one in tried}
            is_fixed = len(shapes) == 1
            whole = FolderPreprocess(extractor, Mono(rate, 1.0, "error"), is_fixed, 1)
            features = [whole.features(one) for one in tried]
        except Exception as error:
            raise Mistake(
                f"{setting}={path}: {type(extractor).__name__} cannot make features of a sound ({error})."
            ) from error
        window = window_seconds(extractor) if is_fixed else None
        if is_fixed and window is None:
            raise Mistake(f"{setting}={path}: how long a sound {type(extractor).__name__} takes is not known here.")
        if window is not None and max_seconds is not None and max_seconds > window:
            raise Mistake(
                f"encoder.audio.max_seconds={max_seconds:g}: {type(extractor).__name__} takes {window:g} s, and would "
                "drop the rest in silence. Lower it, or set it to null."
            )
        # `forward` needs no mask for the probe: one sound has no padding.
        example = {name if key == "sound" else key: one.unsqueeze(0) for key, one in features[-1].items()}
        example.pop("size", None)
        super().__init__("audio", path, trainable, dtype, pool, example, None)
        self.fixed = is_fixed
        mask_norms(self.model)
        limit = max_seconds or window or float("inf")
        self.preprocess = FolderPreprocess(
            extractor, Mono(rate, limit, over_length), is_fixed, self.shortest_sound(rate)
        )
        self.one_by_one = False
        if not self.fixed and self.files:
            self.one_by_one = self.sees_padding([one["sound"] for one in features])

    def forward(
        self,
        sound: Tensor,
        size: Tensor | None = None,
        is_longer: Tensor | None = None,
        sound_lengths: Tensor | None = None,
    ) -> Tokens:
        """sound [N, S, ...] -> [N, T, E]; T is 1 with `pool`. `size` int64 [N]: frames of a filled window."""
        inputs = {self.input_name: sound} | ({} if is_longer is None else {"is_longer": is_longer})
        if self.fixed:
            features = self.run(**inputs)
            return self.pooled(features, self.token_mask(features, size, sound))
        if sound_lengths is None:
            return self.pooled(self.run(**inputs), None)
        if self.one_by_one:
            features, lengths = self.run_by_length(sound, sound_lengths)
            return self.pooled(features, torch.arange(features.shape[1], device=features.device) < lengths.unsqueeze(1))
        inside = torch.arange(sound.shape[1], device=sound.device) < sound_lengths.unsqueeze(1)
        with lengths_known(self.model, sound_lengths):
            features = self.run(**inputs, attention_mask=inside.long())
        return self.pooled(features, self.token_mask(features, sound_lengths, sound))

    def token_mask(self, features: Tensor, size: Tensor | None, sound: Tensor) -> Tensor | None:
        """bool [N, T] by the model's own rule of how many tokens a size gives; None: every token counts.

        AST and CLAP tell no size: a patch of theirs is not a moment, and their tokens all belong to the window.
        """
        rule = getattr(self.model, "_get_feat_extract_output_lengths", None)
        if size is None or (rule is None and self.fixed):
            return None
        if rule is not None:
            size = rule(size)
            size = size[-1] if isinstance(size, tuple) else size  # Qwen's gives two
        elif features.shape[1] != sound.shape[1]:
            raise Fault(f"{self.seat}: {self.family} does not say which of its tokens are padding.")
        return torch.arange(features.shape[1], device=features.device) < cast(Tensor, size).unsqueeze(1)

    def run_by_length(self, sound: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Sounds of one length at a time, for a family that sees padding. It asks the device for the lengths."""
        found: dict[int, Tensor] = {}
        for length, count in enumerate(torch.bincount(size.cpu()).tolist()):
            if count:
                rows = (size == length).nonzero().squeeze(1)
                features = self.run(**{self.input_name: sound[rows, :length]})
                found |= {int(row): features[k] for k, row in enumerate(rows)}
        ordered = [found[row] for row in range(len(sound))]
        lengths = torch.tensor([len(one) for one in ordered], device=sound.device)
        return torch.nn.utils.rnn.pad_sequence(ordered, batch_first=True), lengths

    def shortest_sound(self, rate: int) -> int:
        """Samples that give a token, where the model's rule counts samples."""
        rule = getattr(self.model, "_get_feat_extract_output_lengths", None)
        if rule is None or self.fixed or self.input_name != "input_values":
            return 1
        with torch.device("cpu"):
            return 1 + bisect_left(range(1, rate), 1, key=lambda samples: int(rule(torch.tensor(samples))))

    @torch.no_grad()
    def sees_padding(self, sounds: list[Tensor]) -> bool:
        """Whether a sound's features in a padded batch are others than its features alone."""
        lengths = torch.tensor([len(one) for one in sounds])
        pool, self.pool = self.pool, "none"
        try:
            alone = [self(sound=one.unsqueeze(0)).features[0] for one in sounds]
            batch = self(sound=torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True), sound_lengths=lengths)
        except Exception:  # it takes no attention mask, or does not say what becomes of it
            return True
        finally:
            self.pool = pool
        for wanted, features, mask in zip(alone, batch.features, batch.mask, strict=True):
            if int(mask.sum()) != len(wanted):
                return True
            if not float((features[mask] - wanted).abs().max()) <= TOLERANCE[self.dtype] * float(wanted.abs().max()):
                return True
        return False


def window_seconds(extractor: Any) -> float | None:
    """How long a sound an extractor with a fixed window takes before it drops some of it."""
    for name in ("n_samples", "nb_max_samples"):  # Whisper's, CLAP's
        if getattr(extractor, name, None):
            return float(getattr(extractor, name) / extractor.sampling_rate)
    if type(extractor).__name__ == "ASTFeatureExtractor":  # frames of 25 ms, one each 10 ms at 16 kHz
        return float(((extractor.max_length - 1) * 160 + 400) / extractor.sampling_rate)
    return None
