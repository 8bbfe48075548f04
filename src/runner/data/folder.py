"""Pictures, sounds or series in folders by class: PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val, test beside it.

The label of a row is the name of its folder. Which files are held out, and in which order rows come, is a function of
their names alone, so neither the file system nor the machine changes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from runner.data.rows import SERIES_FILES, check_placeholders, placeholder_names
from runner.protocols import Message, Mistake, Row

SPLITS = ("train", "val", "test")
ALSO_CALLED = {
    **{name: name for name in SPLITS},
    **{"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "testing": "test"},
}
"""What other programs call the splits, in lower case: no name here, but a hint."""
SUFFIXES = {
    "image": (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    "audio": (".wav",),
    "series": SERIES_FILES,
}
KINDS = {"image": "pictures", "audio": "sounds", "series": "series"}
FFMPEG = "ffmpeg -i FILE -c:a pcm_s16le OUT.wav"
MEND = {"image": "Convert them", "audio": f"Convert them ({FFMPEG})", "series": "Convert them"}
JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")
"""What systems leave in folders, beside hidden files; in lower case."""
LAYOUT = "Files stand in PATH/CLASS/FILE, or in PATH/train/CLASS/FILE with val and test beside train."
TOLD = 3
"""Files named of each mistake; the others are counted."""

Classes = Mapping[Path, "Found"]
"""By the folder of each class, what stands in it."""


class Folder:
    """Where there is no val folder, `val_share` of each class's files to train on is held out; null: none is."""

    def __init__(
        self,
        path: str,
        modality: Literal["image", "audio", "series"] | None,
        val_share: Annotated[float, Gt(0), Lt(1)] | None,
        split_seed: Annotated[int, Ge(0)],
        prompt: str | None,
    ) -> None:
        self.path = path
        self.modality = modality
        self.val_share = val_share
        self.split_seed = split_seed
        self.prompt = prompt

    def read(self, modalities: Sequence[str]) -> dict[str, list[Row]]:
        try:
            return self.splits(Tree(Path(self.path)), placeholder_names(modalities))
        except Mistake as mistake:
            raise Mistake(f"data.path={self.path}: {mistake}") from mistake

    def splits(self, tree: Tree, placeholders: Sequence[str]) -> dict[str, list[Row]]:
        folders, above = tree.class_folders()
        classes = {folder: found for split in folders.values() for folder, found in split.items()}
        modality = self.modality or modality_of(tree, classes)
        wrong = list(complaints(tree, classes, above, modality))
        if wrong:
            raise Mistake("\n".join(wrong))
        rows = {split: self.rows(tree, found, modality, placeholders) for split, found in folders.items()}
        if "val" not in rows and self.val_share is not None:
            train, val = hold_out(rows.pop("train"), self.val_share)
            rows = {"train": train, "val": val, **rows}
        return {split: rows[split] for split in SPLITS if split in rows}

    def rows(self, tree: Tree, classes: Classes, modality: str, placeholders: Sequence[str]) -> list[Row]:
        """In a drawn order: any first few rows are of many classes, those that are held out and predicted, say."""
        rows = [
            self.row(tree, file, modality, placeholders)
            for folder, found in classes.items()
            for file in (folder / name for name in found.files)
        ]
        return sorted(rows, key=lambda row: (drawn(self.split_seed, row.id), row.id))

    def row(self, tree: Tree, file: Path, modality: str, placeholders: Sequence[str]) -> Row:
        label, name = file.parent.name, tree.name(file)
        row = Row(id=name, where=str(file), items={modality: (tree.resolved / name,)}, label=label)
        if self.prompt is None:
            return row
        row = replace(row, messages=(Message("user", self.prompt), Message("assistant", label)))
        try:
            check_placeholders(row, placeholders)
        except Mistake as mistake:
            raise Mistake(f"{name}, with data.prompt={self.prompt!r}: {mistake}") from mistake
        return row


@dataclass(frozen=True)
class Found:
    """The names of what stands in one folder, sorted; not what is hidden or junk."""

    folders: list[str]
    files: list[str]


class Tree:
    """The folder that a user names, and what is below it."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise Mistake("that is a file, and data=folder reads a folder. data=jsonl reads a file of rows.")
        self.root = root
        self.resolved = root.resolve()

    def name(self, place: Path) -> str:
        return place.relative_to(self.root).as_posix()

    def class_folders(self) -> tuple[dict[str, Classes], list[Path]]:
        """The folders of classes by split, and the files that stand above them."""
        top = self.look(self.root)
        below = {self.root / name: self.look(self.root / name) for name in top.folders}
        above = [self.root / name for name in top.files]
        if not below:
            raise Mistake(f"it holds no folder. {LAYOUT}")
        if not any(found.folders for found in below.values()):
            if all(name.lower() in ALSO_CALLED for name in top.folders):
                raise Mistake(f"there is no folder of a class in {listed(top.folders)}. {LAYOUT}")
            return {"train": below}, above
        self.check_splits({folder.name: found for folder, found in below.items()})
        for folder, found in below.items():
            above += [folder / name for name in found.files]
        return {
            folder.name: {folder / name: self.look(folder / name) for name in found.folders}
            for folder, found in below.items()
        }, above

    def check_splits(self, below: Mapping[str, Found]) -> None:
        """Raises `Mistake` unless the folders, some of which hold folders, are train and, if there, val and test."""
        if not any(name.lower() in ALSO_CALLED for name in below):
            name, found = next((name, found) for name, found in below.items() if found.folders)
            hint = f" Did you mean data.path={self.root / name}?" if len(below) == 1 else ""
            raise Mistake(
                f"`{name}`, which would be a class, holds folders: {listed(found.folders)}.{hint} {LAYOUT} Move files "
                "up, or write rows (data=jsonl)."
            )
        for name in below:
            if name not in SPLITS:
                meant = ALSO_CALLED.get(name.lower())
                hint = f"; did you mean {meant}? Rename it." if meant else ". Move it away, or into train."
                raise Mistake(f"the folder `{name}` is none of {', '.join(SPLITS)}{hint}")
        if "train" not in below:
            raise Mistake(f"there is {' and '.join(below)}, and no train. {LAYOUT}")
        for name, found in below.items():
            if not found.folders:
                raise Mistake(f"`{name}` holds no folder of a class. {LAYOUT} Move `{name}` away if it has no classes.")

    def look(self, folder: Path) -> Found:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.lower() in JUNK:
                        continue
                    self.check(entry)
                    (folders if entry.is_dir() else files).append(entry.name)
        except OSError as error:
            raise Mistake(f"{folder} cannot be read: {error.strerror}.") from error
        return Found(sorted(folders), sorted(files))

    def check(self, entry: os.DirEntry[str]) -> None:
        """Names are kept as text, and a link must not lead outside: only links are followed, as files are many."""
        place = Path(entry.path)
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise Mistake(f"the name {entry.name!a} in {place.parent} is not UTF-8. Rename it.") from error
        if entry.is_symlink():
            try:
                target = place.resolve(strict=True)
            except (OSError, RuntimeError) as error:  # nothing there, or a loop of links
                raise Mistake(f"{self.name(place)} is a link that leads nowhere. Take it out.") from error
            if not target.is_relative_to(self.resolved):
                raise Mistake(f"{self.name(place)} is a link that leads outside, to {target}. Put what it names there.")
        elif not entry.is_dir() and not entry.is_file():
            raise Mistake(f"{self.name(place)} is neither a file nor a folder. Take it out.")


def modality_of(tree: Tree, classes: Classes) -> str:
    """What the suffixes of the classes' files say. Raises `Mistake` where they say nothing, or different things."""
    files = [folder / name for folder, found in classes.items() for name in found.files]
    kinds = {modality: [file for file in files if is_a(modality, file)] for modality in SUFFIXES}
    kinds = {modality: found for modality, found in kinds.items() if found}
    if len(kinds) > 1:
        said = " and ".join(
            f"{len(found):,} {KINDS[modality]} ({listed(map(tree.name, found))})" for modality, found in kinds.items()
        )
        raise Mistake(f"it holds {said}. Keep one kind; rows with several are written as JSONL (data=jsonl).")
    if not kinds:
        known = "; ".join(f"{KINDS[modality]} {' '.join(suffixes)}" for modality, suffixes in SUFFIXES.items())
        there = f" ({listed(map(tree.name, files))})" if files else ""
        raise Mistake(f"no folder of a class holds a file of a known kind{there}. Known: {known}.")
    return next(iter(kinds))


def complaints(tree: Tree, classes: Classes, above: Sequence[Path], modality: str) -> Iterator[str]:
    """A sentence for each kind of thing that would be lost in silence."""
    kind, suffixes = KINDS[modality], " ".join(SUFFIXES[modality])
    nested = [f"{tree.name(folder)}/{name}" for folder, found in classes.items() for name in found.folders]
    if nested:
        yield (
            f"{counted(nested, 'folder stands', 'folders stand')} in the folder of a class: {listed(nested)}. "
            "Move their files up, or write rows (data=jsonl)."
        )
    empty = [tree.name(folder) for folder, found in classes.items() if not found.files and not found.folders]
    if empty:
        yield f"{counted(empty, 'folder is', 'folders are')} empty: {listed(empty)}. Fill or delete what is empty."
    files = [folder / name for folder, found in classes.items() for name in found.files]
    foreign = [tree.name(file) for file in files if not is_a(modality, file)]
    if foreign:
        yield (
            f"{counted(foreign, 'file is', 'files are')} none of the {kind} ({suffixes}) that are read here: "
            f"{listed(foreign)}. {MEND[modality]}, or move them away."
        )
    lost = [tree.name(file) for file in above if is_a(modality, file)]
    if lost:
        yield (
            f"{counted(lost, 'file stands', 'files stand')} in no folder of a class: {listed(lost)}. "
            "Move what is there into one, or away."
        )


def hold_out(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Of each class the first rows, as they were drawn: the nearest whole number, but one at least on either side."""
    files = Counter(row.label for row in rows)
    left = {label: min(max(1, int(share * count + 0.5)), count - 1) for label, count in files.items()}
    alone = sorted(str(label) for label, count in files.items() if count == 1)
    if len(alone) == len(files):
        raise Mistake("each class has one file, so none can be held out. Set data.val_share=null.")
    if alone:
        logging.getLogger("runner").warning(
            "%s a single file, which is trained on, and nothing to hold out: %s.",
            counted(alone, "class has", "classes have"),
            listed(alone),
        )
    train: list[Row] = []
    val: list[Row] = []
    for row in rows:
        (val if left[row.label] else train).append(row)
        left[row.label] -= bool(left[row.label])
    return train, val


def drawn(seed: int, name: str) -> bytes:
    """A number for each name, like one drawn from a hat, and the same everywhere."""
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()


def is_a(modality: str, file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES[modality]


def counted(things: Sequence[str], one: str, several: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else several}"


def listed(names: Iterator[str] | Sequence[str]) -> str:
    names = list(names)
    more = len(names) - TOLD
    return ", ".join(names[:TOLD]) + (f" and {more:,} more" if more > 0 else "")
