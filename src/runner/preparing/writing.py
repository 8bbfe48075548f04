"""A dataset on disk: a JSONL file a split, its items beside them, and a manifest of what every byte should be.

It is written beside its place, synced and renamed, so a dataset that can be seen is whole.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.io import wavfile

from runner import fingerprint
from runner.data.decode import decode
from runner.preparing.content import Content
from runner.protocols import Fault, Mistake, Row

FORMAT = 1
MANIFEST = "manifest.json"
INLINE = 1000
"""Numbers of a series up to which they stand in the row itself."""


def check_output(output: Path, overwrite: bool, sources: Mapping[str, Any]) -> None:
    """Raises `Mistake` where a dataset cannot go. `sources`: by key of `data`, what will be read."""
    if output.exists() and not output.is_dir():
        raise Mistake(f"prepare.output={output} is a file. Name a folder.")
    for key, source in sources.items():
        if isinstance(source, str) and Path(source).resolve().is_relative_to(output.resolve()):
            raise Mistake(f"prepare.output={output} holds data.{key}={source} itself. Name another folder.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise Mistake(f"prepare.output={output} is not empty. Set prepare.overwrite=true, or name another folder.")
    if not (output / MANIFEST).is_file():
        raise Mistake(
            f"prepare.output={output} is no dataset that runner prepare wrote: it has no {MANIFEST}, so it is not "
            "overwritten. Name another folder."
        )


@contextmanager
def placed(output: Path) -> Iterator[Path]:
    """A new folder beside `output` to write in, which takes its place when the block ends without an error.

    What was there is moved out of the way first, so there is never half of one and half of the other.
    """
    place = output.resolve()  # of a link what it leads to
    beside = place.with_name(f".{place.name}.partial-{os.getpid()}")
    earlier = place.with_name(f".{place.name}.earlier-{os.getpid()}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for folder, _, files in os.walk(beside):
            for file in files:
                sync(Path(folder, file))
            sync(Path(folder))
        if place.exists():
            place.rename(earlier)
        beside.rename(place)
        sync(place.parent)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        why = f"{error.strerror}: {error.filename or output}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Fault(f"prepare.output={output}: the disk is full ({why}). Make room, or name another.") from error
        raise Mistake(f"prepare.output={output} cannot be written ({why}). Name another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if earlier.exists() and not place.exists():
            earlier.rename(place)


def write_split(folder: Path, split: str, contents: Sequence[Content], how: Literal["copy", "link"]) -> None:
    """Raises `Mistake` for a row with an id that another has, or with what JSON cannot hold."""
    items = Items(folder, how)
    seen: dict[str, Row] = {}
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for one in contents:
            row = one.row
            if row.id in seen:
                raise Mistake(
                    f"{seen[row.id].where} and {row.where} both have the id {row.id}, and both come into the {split} "
                    "split. Give each its own, or keep the source's splits (prepare.splits=auto)."
                )
            seen[row.id] = row
            file.write(json.dumps(record_of(one, items), ensure_ascii=False, allow_nan=False) + "\n")


def record_of(one: Content, items: Items) -> dict[str, Any]:
    """A row as data=jsonl reads it, without any setting: further fields are written as `_NAME`."""
    row = one.row
    record: dict[str, Any] = {"id": row.id}
    hashes = iter(one.items)
    for modality, values in sorted(row.items.items()):
        written = [value if modality == "text" else items.put(value, modality, next(hashes).sha256) for value in values]
        if written:
            record[modality] = written[0] if len(written) == 1 else {"items": written}
    if row.messages:
        record["messages"] = [{"role": message.role, "content": message.content} for message in row.messages]
    if row.label is not None:
        record["label"] = plain(row.label, f"{row.where} (id {row.id}): the label")
    for name, value in row.extra.items():
        field = name if name.startswith("_") else f"_{name}"
        if field in record:
            raise Mistake(f"{row.where} (id {row.id}) has both {name} and {field}. Leave one out of data.extra.")
        record[field] = plain(value, f"{row.where} (id {row.id}): the field {name}")
    return record


def plain(value: Any, what: str) -> Any:
    """JSON of a field; a date as ISO 8601 writes it. Raises `Mistake` for what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(one, what) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, what) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), what)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and np.isfinite(value)):
        return value
    raise Mistake(f"{what} is {str(value)[:40]}, which JSON cannot hold. Take it out of data.extra.")


class Items:
    """The folder `items` of a dataset. Files are named by their content, so one that many rows share is there once."""

    def __init__(self, folder: Path, how: Literal["copy", "link"]) -> None:
        self.folder = folder
        self.how = how

    def put(self, value: Any, modality: str, sha256: str) -> Any:
        """What a row says of an item: a path, or short channels of numbers themselves."""
        if isinstance(value, str | Path):
            return self.file(Path(value), sha256)
        decoded = decode(modality, value)
        if isinstance(decoded, Image.Image):
            stream = io.BytesIO()
            decoded.save(stream, format="PNG")
            return self.bytes(stream.getvalue(), ".png")
        if isinstance(decoded, tuple):
            samples, rate = decoded
            stream = io.BytesIO()
            wavfile.write(stream, rate, np.asarray(samples, dtype=np.float32).T)
            return self.bytes(stream.getvalue(), ".wav")
        numbers = np.atleast_2d(np.asarray(decoded, dtype=np.float32))
        if numbers.size > INLINE:
            stream = io.BytesIO()
            np.save(stream, numbers, allow_pickle=False)
            return self.bytes(stream.getvalue(), ".npy")
        return [[float(number) if np.isfinite(number) else None for number in channel] for channel in numbers]

    def name(self, sha256: str, suffix: str) -> Path:
        (self.folder / "items").mkdir(exist_ok=True)
        return self.folder / "items" / f"{sha256[:16]}{suffix.lower()}"

    def bytes(self, content: bytes, suffix: str) -> str:
        file = self.name(hashlib.sha256(content).hexdigest(), suffix)
        if not file.exists():
            file.write_bytes(content)
        return f"items/{file.name}"

    def file(self, source: Path, sha256: str) -> str:
        """Raises `Mistake` for a file that was changed since it was read."""
        file = self.name(sha256, source.suffix)
        if file.exists():
            return f"items/{file.name}"
        if self.how == "copy":
            shutil.copyfile(source, file)
        else:
            try:
                os.link(source.resolve(), file)
            except OSError as error:
                raise Mistake(
                    f"prepare.items=link: {source} cannot be linked to from {self.folder.parent} ({error.strerror}). "
                    "Set prepare.items=copy."
                ) from error
        if fingerprint.of_file(file) != sha256:
            raise Mistake(f"{source} was changed while it was read. Prepare again.")
        return f"items/{file.name}"


def write_manifest(folder: Path, splits: Sequence[str], besides: Mapping[str, Any]) -> None:
    """The last file: size and sha256 of every other one, and of a split's the number of its rows."""
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        files[name] = {"bytes": file.stat().st_size, "sha256": fingerprint.of_file(file)}
        if file.parent == folder and file.stem in splits and file.suffix == ".jsonl":
            files[name]["rows"] = sum(1 for _ in file.open("rb"))
    write_json(folder / MANIFEST, {"format": FORMAT, **besides, "files": files})


def write_jsonl(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
