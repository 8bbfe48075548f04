"""Rows from a collection of Qdrant: a point's payload is a record. On a server, or in a folder of its embedded mode.

The embedded mode keeps its points as pickles: a stranger's folder is code, so open none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from runner.data.columns import Columns, Record, SplitRows, fingerprint_of_columns
from runner.data.shards import fingerprint_of_file
from runner.protocols import BadRow, Mistake
from runner.settings import Format
from runner.spelling import did_you_mean

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

BATCH = 256
"""Points that are in memory at a time, of a server's."""
PATIENCE = 60
"""Seconds that another program may go on holding a folder of the embedded mode before that is told."""
BOUNDS = ("gt", "gte", "lt", "lte")


class Qdrant:
    """`url` of a server, or `path` of a folder. `filter` says by field which points are to be trained on: a value, a
    list of values, or bounds ({gte: 1, lt: 3}); `val_filter` and `test_filter` which are held out, null: none.

    `files` is the folder that paths in payloads are relative to.
    """

    def __init__(
        self,
        url: str | None,
        path: str | None,
        api_key: str | None,
        collection: str,
        filter: dict[str, Any] | None,
        val_filter: dict[str, Any] | None,
        test_filter: dict[str, Any] | None,
        files: str | None,
        timeout: Annotated[int, Ge(1)],
        fields: dict[str, str | list[str] | None],
        extra: list[str],
        format: Format | None,
    ) -> None:
        if (url is None) == (path is None):
            raise Mistake(
                "data=qdrant: give one of data.url (of a server) and data.path (a folder of the embedded mode)."
            )
        if find_spec("qdrant_client") is None:
            raise Mistake(
                "data=qdrant needs qdrant-client, which is not installed. Install it by "
                "pip install 'multimodal-runner[qdrant]'."
            )
        if path is not None and not (Path(path) / "meta.json").is_file():
            raise Mistake(f"data.path: {path} is not a folder of Qdrant's embedded mode: it has no meta.json.")
        if files is not None and not Path(files).is_dir():
            raise Mistake(f"data.files: there is no folder {files}.")
        filters = {"train": filter, "val": val_filter, "test": test_filter}
        self.filters = {split: some for split, some in filters.items() if split == "train" or some is not None}
        for split, some in self.filters.items():
            check_filter("data.filter" if split == "train" else f"data.{split}_filter", some or {})
        self.url = url
        self.path = path
        self.api_key = api_key
        self.collection = collection
        self.files = files
        self.timeout = timeout
        self.fields = fields
        self.extra = extra
        self.format = format

    def read(self, modalities: Sequence[str]) -> dict[str, SplitRows]:
        with self.client() as client:
            self.check_collection(client)
        columns = Columns(self.fields, self.format, self.extra, modalities, splits=list(self.filters))
        return {
            split: SplitRows(split, columns, partial(self.records, some), self.named(split, some))
            for split, some in self.filters.items()
        }

    def fingerprint(self) -> dict[str, Any] | None:
        """None for a server, which does not say when a point was last changed."""
        if self.path is None:
            return None
        files = sorted(one for one in Path(self.path).rglob("*") if one.is_file() and one.name != ".lock")
        return {
            "files": [fingerprint_of_file(file) for file in files],
            "collection": self.collection,
            "filters": self.filters,
            "root": self.files,
            **fingerprint_of_columns(self.fields, self.format, self.extra),
        }

    def named(self, split: str, some: Mapping[str, Any] | None) -> str:
        key = "filter" if split == "train" else f"{split}_filter"
        return f"{self.collection} with data.{key}={dict(some)}" if some else self.collection

    def records(self, some: Mapping[str, Any] | None) -> Iterator[Record | BadRow]:
        """In the order of the points' ids; of a folder all at once, so that it is closed before the first is used."""
        if self.path is None:
            yield from self.scroll(some)
        else:  # the embedded mode has all in memory anyway
            yield from list(self.scroll(some))

    def scroll(self, some: Mapping[str, Any] | None) -> Iterator[Record]:
        root = Path(self.files or "nowhere, as data.files is null")
        with self.client() as client:
            offset = None
            while True:
                points, offset = client.scroll(
                    self.collection,
                    scroll_filter=filter_of(some or {}),
                    limit=BATCH,
                    offset=offset,
                    with_payload=True,
                    with_vectors=False,
                )
                for point in points:
                    yield Record(dict(point.payload or {}), f"{self.collection}/{point.id}", str(point.id), root)
                if offset is None:
                    return

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """Raises `Mistake` for what its server or its folder has wrong."""
        if self.path is not None:
            with own_turn(self.path), closing(open_folder(self.path)) as opened:
                yield opened
            return
        from qdrant_client import QdrantClient
        from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

        client = None
        try:
            client = QdrantClient(url=self.url, api_key=self.api_key, timeout=self.timeout, check_compatibility=False)
            yield client
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                raise Mistake(
                    f"data.url={self.url}: the server refuses the key. Set data.api_key='${{oc.env:NAME}}'."
                ) from error
            raise Mistake(f"data.url={self.url}: the server says {error.status_code} {error.reason_phrase}.") from error
        except (ResponseHandlingException, ApiException, ConnectionError, TimeoutError) as error:
            raise Mistake(
                f"data.url={self.url}: no Qdrant server answers there within {self.timeout} s ({error}). See that it "
                "runs, or raise data.timeout."
            ) from error
        finally:
            if client is not None:
                client.close()

    def check_collection(self, client: QdrantClient) -> None:
        known = [one.name for one in client.get_collections().collections]
        if self.collection not in known:
            there = f"; there are {', '.join(known)}." if known else "; there is none."
            raise Mistake(
                f"data.collection: there is no {self.collection}{did_you_mean(self.collection, known, there)}"
            )


@contextmanager
def own_turn(folder: str) -> Iterator[None]:
    """The processes of this user's runs go into a folder one after another: its mode allows one at a time."""
    name = hashlib.sha256(f"{os.getuid()} {Path(folder).resolve()}".encode()).hexdigest()[:32]
    with (Path(tempfile.gettempdir()) / f"runner-qdrant-{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone would leave it to a process that was forked meanwhile


def open_folder(folder: str) -> QdrantClient:
    """Raises `Mistake` where another program goes on holding it."""
    from qdrant_client import QdrantClient

    end = time.monotonic() + PATIENCE
    while True:
        try:
            return QdrantClient(path=folder)
        except RuntimeError as error:
            if "already accessed" not in str(error):
                raise
            if time.monotonic() >= end:
                raise Mistake(f"data.path={folder}: another program has it open, and its mode allows one.") from error
        time.sleep(0.1)


def check_filter(key: str, given: Mapping[str, Any]) -> None:
    for field, wanted in given.items():
        if isinstance(wanted, Mapping):
            for bound, value in wanted.items():
                if bound not in BOUNDS:
                    raise Mistake(f"{key}.{field}.{bound} is none of {', '.join(BOUNDS)}{did_you_mean(bound, BOUNDS)}")
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise Mistake(f"{key}.{field}.{bound}={value} is not a number.")
            if not wanted:
                raise Mistake(f"{key}.{field} has no bound; it has some of {', '.join(BOUNDS)}.")
        values = wanted if isinstance(wanted, list) else [wanted]
        if not isinstance(wanted, Mapping) and not (values and all(isinstance(one, str | int) for one in values)):
            raise Mistake(
                f"{key}.{field}={wanted}: a value is a text, a whole number or true or false, or a list of them."
            )


def filter_of(given: Mapping[str, Any]) -> Any:
    """What all of them ask for, as Qdrant has it; None for nothing."""
    from qdrant_client import models

    conditions: list[Any] = []
    for field, wanted in given.items():
        if isinstance(wanted, Mapping):
            conditions.append(models.FieldCondition(key=field, range=models.Range(**wanted)))
        elif isinstance(wanted, list):
            conditions.append(models.FieldCondition(key=field, match=models.MatchAny(any=wanted)))
        else:
            conditions.append(models.FieldCondition(key=field, match=models.MatchValue(value=wanted)))
    return models.Filter(must=conditions) if conditions else None
