"""Rows of a set of Hugging Face's `datasets`: on the hub, in a folder that it saved, or in one of files that it reads.

Pictures and sounds that stand in the set itself go to files named by their content, so that a row is small and JSON can
hold it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.data.arrow import check_types, plain
from runner.data.columns import Columns, Record, SplitRows, fingerprint_of_columns
from runner.data.shards import SPLITS, fingerprint_of_file
from runner.protocols import BadRow, Mistake
from runner.settings import Format
from runner.spelling import did_you_mean

BATCH = 32
"""Rows that are in memory at a time."""
SAVED = ("dataset_dict.json", "state.json")
"""One of them stands in a folder that `save_to_disk` wrote."""
COMMIT = re.compile("[0-9a-f]{40}")


class Hub:
    """`id` on the hub or `path` of a folder; `splits` has the set's name of each of ours, null for one not to read.

    `items_folder`: where pictures and sounds go that stand in the set itself; null: such a set is refused.
    """

    def __init__(
        self,
        id: str | None,
        path: str | None,
        revision: str | None,
        config: str | None,
        splits: dict[str, str | None],
        streaming: bool,
        items_folder: str | None,
        fields: dict[str, str | list[str] | None],
        extra: list[str],
        format: Format | None,
    ) -> None:
        if (id is None) == (path is None):
            raise Mistake("data=hub: give one of data.id (owner/name on the hub) and data.path (a folder).")
        for name in splits:
            if name not in SPLITS:
                raise Mistake(f"data.splits.{name} is none of {', '.join(SPLITS)}{did_you_mean(name, SPLITS)}")
        if splits.get("train") is None:
            raise Mistake("data.splits.train is missing: name the split that is trained on.")
        if path is not None and not Path(path).is_dir():
            raise Mistake(f"data.path: {path} is not a folder. A file is read by data=parquet, data=csv or data=jsonl.")
        self.id = id
        self.path = path
        self.revision = revision
        self.config = config
        self.names = {ours: theirs for ours in SPLITS if (theirs := splits.get(ours)) is not None}
        self.streaming = streaming
        self.items_folder = None if items_folder is None else Path(items_folder).expanduser() / "items"
        self.fields = fields
        self.extra = extra
        self.format = format

    def read(self, modalities: Sequence[str]) -> dict[str, SplitRows]:
        found = self.open()
        columns = Columns(self.fields, self.format, self.extra, modalities, splits=list(self.names))
        splits = {}
        for ours, theirs in self.names.items():
            if theirs not in found:
                known = ", ".join(map(str, found))
                hint = did_you_mean(str(theirs), map(str, found))
                raise Mistake(f"data.splits.{ours}={theirs}: the set has {known}{hint}")
            records = self.reader(found[theirs], f"{self.name}/{theirs}", columns)
            splits[ours] = SplitRows(ours, columns, records, f"{self.name}/{theirs}")
        return splits

    def fingerprint(self) -> dict[str, Any] | None:
        """None where a set on the hub may be another tomorrow: its revision is no commit."""
        shape = fingerprint_of_columns(self.fields, self.format, self.extra)
        shape |= {"config": self.config, "splits": self.names, "items": str(self.items_folder)}
        if self.path is not None:
            files = sorted(file for file in Path(self.path).rglob("*") if file.is_file())
            return {"files": [fingerprint_of_file(file) for file in files], **shape}
        if self.revision is None or not COMMIT.fullmatch(self.revision):
            return None
        return {"id": self.id, "revision": self.revision, **shape}

    @property
    def name(self) -> str:
        return self.id or Path(os.path.abspath(str(self.path))).name

    def open(self) -> Mapping[str, Any]:
        """The set's splits, by its own names."""
        import datasets

        try:
            if self.path is not None and any((Path(self.path) / name).is_file() for name in SAVED):
                found = datasets.load_from_disk(self.path)
                return found if isinstance(found, Mapping) else {str(found.split or "train"): found}
            place = self.id if self.path is None else self.path
            options = {"revision": self.revision} if self.path is None else {}
            splits: Mapping[str, Any] = datasets.load_dataset(
                place, name=self.config, streaming=self.streaming, **options
            )
            return splits
        except ConnectionError as error:
            raise Mistake(
                f"data.id={self.id}: the hub cannot be reached, and the set is not in the cache. See the connection, "
                "or give a folder (data.path)."
            ) from error
        except Exception as error:  # of what a set's files may have wrong, each kind raises another
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            key = "data.path" if self.path is not None else "data.id"
            raise Mistake(f"{key}={self.path or self.id}: datasets cannot open it: {said.rstrip('.')}.") from error

    def reader(self, dataset: Any, source: str, columns: Columns) -> Callable[[], Iterator[Record | BadRow]]:
        import datasets

        features = dataset.features or {}
        items = {name: feature for name, feature in features.items() if holds_items(feature)}
        root = Path(datasets.config.HF_CACHE_HOME if self.path is None else self.path)

        def records() -> Iterator[Record | BadRow]:
            number = 0
            try:
                for batch in dataset.with_format("arrow").iter(batch_size=BATCH):
                    if not number:
                        check_types(batch.schema, source, own=items)
                        columns.check_names(batch.schema.names, source)
                    for values in batch.to_pylist():
                        number += 1
                        where, id = f"{source}:{number}", f"{source.rpartition('/')[2]}:{number}"
                        try:
                            record = Record(self.values(values, features), where, id, root)
                        except Mistake as mistake:
                            yield BadRow(where, str(mistake))
                        else:
                            yield record
            except Mistake:
                raise
            except Exception as error:  # of a file that a set is read from as it is gone through
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise Mistake(f"{source} cannot be read after row {number:,}: {said.rstrip('.')}.") from error

        if items and self.items_folder is None and any(name in columns.known for name in items):
            raise Mistake(
                f"{source}: the column `{next(iter(items))}` holds items itself; name a folder for their files "
                "(data.items_folder)."
            )
        return records

    def values(self, values: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
        """Without nulls; a class by its name, items as paths. `datasets` writes -1 for a class that is not known."""
        record = {}
        for name, value in values.items():
            feature = features.get(name)
            if holds_items(feature):
                value = self.items(value)
            elif feature is not None and type(feature).__name__ == "ClassLabel" and value is not None:
                value = feature.names[value] if value >= 0 else None
            if value is not None:
                record[name] = plain(name, value)
        return record

    def items(self, value: Any) -> Any:
        """Of {"bytes", "path"}, or a list of them, the paths."""
        if isinstance(value, list):
            return {"items": [self.items(one) for one in value if one is not None]}
        if value is None or value["bytes"] is None:
            return None if value is None else value["path"]
        return self.keep(value["bytes"], Path(value["path"] or "").suffix)

    def keep(self, content: bytes, suffix: str) -> Path:
        """The file with this content, written once, whole or not at all."""
        assert self.items_folder is not None
        name = hashlib.blake2b(content, digest_size=16).hexdigest()
        file = self.items_folder / name[:2] / f"{name}{suffix}"
        if not file.exists() or file.stat().st_size != len(content):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(dir=file.parent, prefix=".part-")
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.replace(part, file)
        return file.resolve()


def holds_items(feature: Any) -> bool:
    """Whether a column has pictures or sounds, or lists of them. By the kind's name: `datasets` is slow to import."""
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ in ("Image", "Audio") or (inner is not None and holds_items(inner))
