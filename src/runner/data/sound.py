"""WAV files to samples: whole numbers of 8, 16, 24 and 32 bits and floating point of 32 and 64.

Read here and not by a library: what is wrong with a file is told in a sentence, before anything large is read.
Shapes: C channels, T samples of a channel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runner.protocols import Mistake

MAX_SAMPLES = 100_000_000
"""Of all channels together: 400 MB as float32, 35 minutes of one channel at 48 kHz."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000
WHOLE, FLOATING, EXTENSIBLE = 1, 3, 0xFFFE
LONGEST_LAYOUT = 64
"""Bytes of a format that are looked at; the longest known has 40."""
UNTIL_THE_END = (0, 0xFFFFFFFF)
"""The size that a program writes which does not know it yet: a pipe's."""
CONVERT = "convert it (ffmpeg -i FILE -c:a pcm_s16le OUT.wav)"


def read_sound(file: Path) -> tuple[np.ndarray, int]:
    """float32 [C, T], whole numbers scaled to -1..1 and floating ones as they are, and the rate in Hz."""
    with opened(file) as (stream, size, layout):
        return read_samples(stream, size, layout, file), layout[3]


def check_sound(file: Path) -> None:
    """Raises `Mistake` where `read_sound` would. Whole numbers are always finite, so they are not read."""
    with opened(file) as (stream, size, layout):
        if layout[0] == FLOATING:
            read_samples(stream, size, layout, file)
        else:
            count_frames(stream, size, layout, file)


@contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, int, tuple[int, int, int, int]]]:
    """The file where its samples begin, the size that they should have, and their layout."""
    try:
        with file.open("rb") as stream:
            yield stream, *find_samples(stream, file)
    except (OSError, struct.error) as error:
        raise Mistake(f"{file} is not a whole WAV file: {error}.") from error


def find_samples(stream: BinaryIO, file: Path) -> tuple[int, tuple[int, int, int, int]]:
    head = stream.read(12)
    if not head:
        raise Mistake(f"{file} is empty.")
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise Mistake(f"{file} is not a WAV file; {CONVERT}.")
    layout = None
    while len(chunk := stream.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"fmt ":
            layout = read_layout(stream.read(min(size, LONGEST_LAYOUT)), file)
            stream.seek(max(0, size - LONGEST_LAYOUT), 1)
        elif name == b"data":
            if layout is None:
                raise Mistake(f"{file} is not a whole WAV file: its samples come before their format.")
            return size, layout
        else:
            stream.seek(size, 1)
        stream.seek(size % 2, 1)  # chunks begin at even places
    raise Mistake(f"{file} is not a whole WAV file: it ends before its samples.")


def read_layout(text: bytes, file: Path) -> tuple[int, int, int, int]:
    """Kind of number, bits of one, channels, rate."""
    kind, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", text)
    if kind == EXTENSIBLE:
        kind = struct.unpack_from("<H", text, 24)[0]
    if (kind, bits) not in {(WHOLE, 8), (WHOLE, 16), (WHOLE, 24), (WHOLE, 32), (FLOATING, 32), (FLOATING, 64)}:
        raise Mistake(f"{file} holds samples of {bits} bits in WAV format {kind}, which is not read here; {CONVERT}.")
    if not channels or frame != channels * bits // 8:
        raise Mistake(f"{file} is not a whole WAV file: {channels} channels of {bits} bits in {frame} bytes.")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise Mistake(f"{file} says {rate:,} Hz; sounds have {LOWEST_RATE:,} to {HIGHEST_RATE:,}.")
    return kind, bits, channels, rate


def read_samples(stream: BinaryIO, size: int, layout: tuple[int, int, int, int], file: Path) -> np.ndarray:
    kind, bits, channels, _ = layout
    frames = count_frames(stream, size, layout, file)
    data = stream.read(frames * channels * bits // 8)
    samples = floats(data, bits) if kind == FLOATING else whole_numbers(data, bits)
    if not np.isfinite(samples).all():
        raise Mistake(f"{file} holds samples that are not finite numbers (NaN or infinite).")
    return np.ascontiguousarray(samples.reshape(frames, channels).T)


def count_frames(stream: BinaryIO, size: int, layout: tuple[int, int, int, int], file: Path) -> int:
    """How many samples of each channel there are. Raises `Mistake` where it is none, too many or fewer than said."""
    _, bits, channels, _ = layout
    left = file.stat().st_size - stream.tell()
    if size in UNTIL_THE_END:
        size = left
    if size > left:
        raise Mistake(f"{file} is cut off: {left:,} of {size:,} bytes of samples are there.")
    frame = channels * bits // 8
    frames = size // frame
    if not frames:
        raise Mistake(f"{file} holds no sample.")
    if frames * channels > MAX_SAMPLES:
        raise Mistake(f"{file} holds {frames * channels:,} samples, more than {MAX_SAMPLES:,}; cut it into pieces.")
    return frames


def floats(data: bytes, bits: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # what does not fit is told as not finite
        return np.frombuffer(data, dtype=f"<f{bits // 8}").astype(np.float32)


def whole_numbers(data: bytes, bits: int) -> np.ndarray:
    """To -1..1: the lowest number is -1."""
    if bits == 8:  # the only one without a sign
        return (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:  # as the upper three bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return (wide.view("<i4").reshape(-1) / np.float64(2**31)).astype(np.float32)
    return (np.frombuffer(data, dtype=f"<i{bits // 8}") / np.float64(2 ** (bits - 1))).astype(np.float32)
