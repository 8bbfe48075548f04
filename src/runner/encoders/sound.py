"""What every audio encoder's preprocess begins with: one channel at the encoder's own rate, of a length it takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

import numpy as np

from runner.protocols import Mistake


@dataclass(frozen=True)
class Mono:
    """(samples float32 [C, T], rate in Hz) to float32 [T] at `rate`: the mean of the channels, resampled."""

    rate: int
    max_seconds: float
    over_length: Literal["error", "cut"]

    def __call__(self, sound: tuple[np.ndarray, int]) -> np.ndarray:
        samples, rate = sound
        seconds = samples.shape[1] / rate
        if seconds > self.max_seconds:
            if self.over_length == "error":
                raise Mistake(
                    f"it lasts {seconds:.2f} s, more than the {self.max_seconds:g} s that encoder.audio takes; raise "
                    "encoder.audio.max_seconds where the model allows it, or keep the beginning of such sounds "
                    "(encoder.audio.over_length=cut)."
                )
            samples = samples[:, : int(self.max_seconds * rate)]  # before resampling, whose filter then sees no more
        return resample(samples.mean(axis=0, dtype=np.float32), rate, self.rate)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """float32 [T] from one rate in Hz to another, low-passed, so that nothing above the new half rate folds back."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)
