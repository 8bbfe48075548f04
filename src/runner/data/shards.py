"""The files of a source's splits: one file, a folder with one for each split, or several that make a split together."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from runner.protocols import Mistake
from runner.spelling import did_you_mean, nearest

SPLITS = ("train", "val", "test")
MAX_LINE = 64 * 2**20
"""Bytes; a longer line is told and passed over."""
PIECE = 2**20
"""Bytes of it that are held at a time."""


@dataclass(frozen=True)
class Shard:
    """One file of a split. `name` is what people are told (`train.jsonl`, `train/part-0.jsonl`)."""

    file: Path
    root: Path
    """What the paths in it are relative to."""
    name: str
    stem: str
    """`name` without its suffix: of it are made the ids of rows that have none."""


def find_shards(path: str, val_path: str | None, suffixes: Sequence[str]) -> dict[str, list[Shard]]:
    """By split, in the order of their names. `suffixes` are those of the files in a folder, the usual one first."""
    splits = (
        splits_in(Path(path), suffixes) if Path(path).is_dir() else {"train": shards_at("data.path", path, suffixes)}
    )
    if val_path is not None:
        splits["val"] = shards_at("data.val_path", val_path, suffixes)
    return {split: splits[split] for split in SPLITS if split in splits}


def splits_in(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Shard]]:
    """Of each split either FOLDER/train.jsonl or FOLDER/train/*.jsonl."""
    splits = {}
    for split in SPLITS:
        files = [folder / f"{split}{suffix}" for suffix in suffixes]
        found = [file for file in files if file.is_file()]
        if (folder / split).is_dir():
            found += files_in(folder / split, suffixes)
        if len({file.parent for file in found}) > 1 or (len(found) > 1 and found[0].parent == folder):
            two = " and ".join(file.relative_to(folder).as_posix() for file in (found[0], found[-1]))
            raise Mistake(f"data.path: {folder} has {two}, and only one can be the {split} split. Move one away.")
        if found:
            splits[split] = [shard_of(file, folder, suffixes) for file in found]
    if "train" not in splits:
        lacking = folder / f"train{suffixes[0]}"
        others = files_in(folder, suffixes)
        near = nearest("train", [file.name.partition(".")[0] for file in others])
        hint = f"; did you mean {near}{suffixes[0]}?" if near else "."
        if others and not near:
            hint = f"; where all its files are to be trained on, say data.path='{folder}/*{suffixes[0]}'."
        raise Mistake(f"data.path: there is no file {lacking}{hint}")
    return splits


def shards_at(key: str, path: str, suffixes: Sequence[str]) -> list[Shard]:
    """Of one split: a file, all in a folder, or all that a pattern matches."""
    place = Path(path)
    if place.is_dir():
        files, root = files_in(place, suffixes), place
    elif not place.exists() and glob.has_magic(path):
        files = [Path(one) for one in sorted(glob.glob(path, recursive=True)) if Path(one).is_file()]
        root = fixed_part(place)
    else:
        files, root = [place], place.parent
    if not files:
        raise Mistake(f"{key}: no file matches {path}{'/*' + suffixes[0] if place.is_dir() else ''}.")
    if not place.is_dir() and files == [place] and not place.is_file():
        if place.exists():
            raise Mistake(f"{key}: {place} is not a regular file.")
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        raise Mistake(f"{key}: there is no file {place}{did_you_mean(place.name, beside)}")
    return [shard_of(file, root, suffixes) for file in files]


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Not hidden ones."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.name.endswith(tuple(suffixes)) and not entry.name.startswith(".") and entry.is_file()
    )


def fixed_part(pattern: Path) -> Path:
    """The folder above the first part that has a wildcard."""
    parts = pattern.parts
    first = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def shard_of(file: Path, root: Path, suffixes: Sequence[str]) -> Shard:
    name = file.relative_to(root).as_posix()
    suffix = next((one for one in suffixes if name.endswith(one)), file.suffix)
    return Shard(file, root, name, name.removesuffix(suffix) if suffix else name)


def fingerprint_of(shards: Mapping[str, Sequence[Shard]]) -> dict[str, list[list[Any]]]:
    """By split, of each file: its name and what its paths are relative to, where it is, bytes, and its last change."""
    return {
        split: [[shard.name, str(shard.root.resolve()), *fingerprint_of_file(shard.file)] for shard in some]
        for split, some in shards.items()
    }


def fingerprint_of_file(file: Path) -> list[Any]:
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def read_lines(shard: Shard) -> Iterator[tuple[int, bytes | None]]:
    r"""(line number, bytes with the line's end); None for a line that is too long. Lines end with \n alone.

    Raises `Mistake` where no line can be read: an encoding of two or four bytes a character, a broken gzip file.
    """
    number = 0
    try:
        with open_binary(shard.file) as stream:
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if number == 1:
                    check_encoding(line[:4], shard)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                too_long = len(line) > MAX_LINE
                while too_long and not line.endswith(b"\n"):
                    line = stream.readline(PIECE)
                    if not line:
                        break
                yield number, None if too_long else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Mistake(f"{shard.name} is not a whole gzip file: {error} (after line {number:,}).") from error
    except OSError as error:
        raise Mistake(f"{shard.name} cannot be read: {error.strerror or error}.") from error


def open_binary(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def check_encoding(start: bytes, shard: Shard) -> None:
    """`start`: the file's first four bytes, which tell UTF-16 and UTF-32 by their marks or zeros (RFC 4627, 3)."""
    encoding = json.detect_encoding(start)
    if not encoding.startswith("utf-8"):
        name = encoding.upper()
        raise Mistake(f"{shard.name} is {name}, and files are read as UTF-8: iconv -f {name} -t UTF-8 FILE > NEW_FILE.")


TOO_LONG = f"has more than {MAX_LINE // 2**20} MiB; a line holds one row."


def not_utf8(error: UnicodeDecodeError) -> str:
    return (
        f"is not UTF-8 at byte {error.start + 1} of the line; a file in Latin-1 or Windows-1252 is converted by "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE."
    )
