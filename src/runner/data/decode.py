"""One item of a row, as it stands there, to what an encoder's preprocess takes.

Shapes: C channels, T samples or numbers of a channel.
"""

from __future__ import annotations

import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from runner.data.series_files import read_series
from runner.data.sound import check_sound, read_sound
from runner.protocols import Mistake

MAX_PIXELS = 50_000_000
"""A picture larger than this is refused by its header, before it is decompressed."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def decode(modality: str, value: Any) -> Any:
    """A picture as PIL image of mode L or RGB; a sound as (samples float32 [C, T], rate in Hz); channels of numbers,
    inline or in a file of `series`, as float32 [C, T] with NaN for a missing value; anything else as it is."""
    if modality == "image":
        return normalise(value, "a picture") if isinstance(value, Image.Image) else read_picture(Path(value))
    if modality == "audio" and isinstance(value, str | Path):
        return read_sound(Path(value))
    if modality == "series" and isinstance(value, Path):
        return read_series(value)
    if isinstance(value, list):
        return np.asarray(value, dtype=np.float32)
    return value


def check_item_file(modality: str, file: Path) -> None:
    """Raises `Mistake` with the reason alone where an item's file is not whole. Pictures and series are decoded; of
    sounds the header is read, and the samples where they may be no numbers."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for ever
            raise Mistake(f"{file} is not a regular file.")
        if modality == "audio":
            check_sound(file)
        else:
            decode(modality, file)
    except MemoryError as error:  # a header may say anything
        raise Mistake(f"its `{modality}` cannot be read: {file} says it is larger than memory.") from error
    except OSError as error:
        raise Mistake(f"its `{modality}` cannot be read: {file}: {error.strerror or error}.") from error
    except Mistake as mistake:
        raise Mistake(f"its `{modality}` cannot be read: {mistake}") from mistake
    except Exception as error:  # a broken file shows itself in many ways
        said = f"{type(error).__name__}: {error}"
        raise Mistake(f"its `{modality}` cannot be read: {file} is not whole ({said[:200]}).") from error


def read_picture(file: Path) -> Image.Image:
    """Whatever its suffix says; of a JPEG with further pictures in it (MPO, of telephones) the first."""
    known = ", ".join(FORMATS)
    try:
        if not file.stat().st_size:
            raise Mistake(f"{file} is empty.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF and the like, which change no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as picture:
                check_size(picture, str(file))
                if picture.format != "MPO" and getattr(picture, "is_animated", False):
                    raise Mistake(f"{file} holds several pictures (an animation or pages); save the one that is meant.")
                return normalise(picture, str(file))
    except Mistake:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Mistake(f"{file} has more than {MAX_PIXELS:,} pixels; make it smaller.") from error
    except UnidentifiedImageError as error:
        raise Mistake(f"{file} is not a whole picture of a known format ({known}).") from error
    except Exception as error:  # Pillow's readers raise many kinds for a broken file
        raise Mistake(f"{file} is not a whole picture of a known format ({known}): {error}.") from error


def check_size(picture: Image.Image, name: str) -> None:
    """By the header, before anything is decompressed."""
    width, height = picture.size
    if not width * height:
        raise Mistake(f"{name} is {width} x {height}: it has no pixel.")
    if width * height > MAX_PIXELS:
        raise Mistake(f"{name} is {width} x {height}, more than {MAX_PIXELS:,} pixels; make it smaller.")


def normalise(picture: Image.Image, name: str) -> Image.Image:
    """Upright, loaded, and of mode L or RGB; an alpha channel is dropped, 16-bit grey is scaled to 8 bits."""
    check_size(picture, name)
    if picture.mode == "F":
        raise Mistake(f"{name} holds floating-point pixels, whose range is unknown; save it with 8 or 16 bits.")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.asarray(picture, dtype=np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise Mistake(f"{name} has pixels outside 0..65535; save it with 8 or 16 bits.")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    return picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
