"""Rows from every kind of source: the same records give the same rows, whatever they are kept in."""

from __future__ import annotations

import csv
import fcntl
import gzip
import json
import os
import resource
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from runner.config import compose
from runner.data import shards
from runner.data.decode import decode
from runner.data.formats import FORMATS
from runner.data.hub import Hub
from runner.data.jsonl import Jsonl
from runner.data.qdrant import Qdrant
from runner.data.table import Csv, Parquet
from runner.protocols import BadRow, Message, Mistake, Row
from runner.settings import Format

FORMAT_NAMES = Format.__args__  # type: ignore[attr-defined]
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "messages": [{"role": "user", "content": 'Wie heißt "du"?\nSag,'}], "label": 3, "note": "x,y"},
    {"id": "b", "messages": [{"role": "user", "content": "<image> 二"}], "image": "cat.png", "label": "007"},
    {"id": "c", "messages": [{"role": "user", "content": "?"}], "series": [[1.5, None, 2.0]], "text": "t"},
]


@pytest.fixture(autouse=True)
def cat(tmp_path: Path) -> Path:
    Image.new("RGB", (3, 2), (200, 100, 0)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def lines(records: Iterable[object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def as_jsonl(folder: Path) -> Any:
    (folder / "rows.jsonl").write_text(lines(RECORDS))
    return Jsonl(str(folder / "rows.jsonl"), None, {}, ["note"], None)


def as_gzip(folder: Path) -> Any:
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.write(lines(RECORDS))
    return Jsonl(str(folder / "rows.jsonl.gz"), None, {}, ["note"], None)


def as_csv(folder: Path) -> Any:
    names = ["id", "messages", "label", "note", "image", "series", "text"]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for record in RECORDS:
            values = [record.get(name, "") for name in names]
            writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in values])
    return Csv(str(folder / "rows.csv"), None, ",", {}, ["note"], None)


def columns_of(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A label of numbers and texts is no column, so it is a text."""
    names = dict.fromkeys(key for record in records for key in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    columns["label"] = [None if one is None else str(one) for one in columns["label"]]
    return columns


def as_parquet(folder: Path) -> Any:
    parquet.write_table(pyarrow.table(columns_of(RECORDS)), folder / "rows.parquet")
    return Parquet(str(folder / "rows.parquet"), None, {}, ["note"], None)


def as_saved_set(folder: Path) -> Any:
    from datasets import Dataset

    Dataset.from_dict(columns_of(RECORDS)).save_to_disk(str(folder / "set"))
    (folder / "cat.png").rename(folder / "set" / "cat.png")
    return hub(path=str(folder / "set"), extra=["note"])


def as_collection(folder: Path) -> Any:
    return collection(folder, RECORDS, files=str(folder), extra=["note"])


def hub(**given: Any) -> Hub:
    whole = {
        "id": None,
        "path": None,
        "revision": None,
        "config": None,
        "splits": {"train": "train"},
        "streaming": False,
    }
    return Hub(**{**whole, "items_folder": None, "fields": {}, "extra": [], "format": None, **given})


def collection(folder: Path, payloads: Iterable[dict[str, Any]], **given: Any) -> Qdrant:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder / "points"))
    client.create_collection("rows", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT))
    points = [models.PointStruct(id=k, vector=[1.0], payload=one) for k, one in enumerate(payloads, start=1)]
    client.upsert("rows", points[::-1])
    client.close()
    return qdrant(path=str(folder / "points"), **given)


def qdrant(**given: Any) -> Qdrant:
    whole = {
        "url": None,
        "path": None,
        "api_key": None,
        "collection": "rows",
        "files": None,
        "timeout": 1,
        "fields": {},
    }
    whole |= {"filter": None, "val_filter": None, "test_filter": None, "extra": [], "format": None}
    return Qdrant(**{**whole, **given})


SOURCES: dict[str, Callable[[Path], Any]] = {
    "jsonl": as_jsonl, "gzip": as_gzip, "csv": as_csv, "parquet": as_parquet, "hub": as_saved_set,
    "qdrant": as_collection,
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.filterwarnings("ignore")
def test_every_source_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    rows = source.read(["image"])["train"]
    found = list(rows)
    assert [row.id for row in found] == ["a", "b", "c"]
    assert [row.messages[0].content for row in found] == [one["messages"][0]["content"] for one in RECORDS]
    texts = kind in ("parquet", "hub")  # their columns have one type
    assert [row.label for row in found] == ["3" if texts else 3, "007", None]
    assert found[0].extra == {"note": "x,y"}
    assert not found[1].extra.get("note")
    assert [path.name for path in found[1].items["image"]] == ["cat.png"] and found[1].items["image"][0].is_file()
    assert found[2].items == {"series": ([[1.5, None, 2.0]],), "text": ("t",)}
    assert list(rows) == found, "a source can be gone through again"
    assert len({row.where for row in found}) == 3


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.filterwarnings("ignore")
def test_a_fingerprint_is_another_when_the_rows_may_be(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    before = json.dumps(source.fingerprint())
    assert json.dumps(source.fingerprint()) == before
    list(source.read([])["train"])
    assert json.dumps(source.fingerprint()) == before, "reading changes nothing"
    source.fields = {"label": "class"}
    assert json.dumps(source.fingerprint()) != before
    source.fields = {}
    file = next(
        file
        for file in sorted(tmp_path.rglob("*"))
        if file.is_file() and file.suffix != ".png" and file.name != ".lock"
    )
    os.utime(file, ns=(1, 1))
    assert json.dumps(source.fingerprint()) != before


def ids(rows: Iterable[Row | BadRow]) -> list[str]:
    return [row.id if isinstance(row, Row) else f"{row.where}: {row.reason}" for row in rows]


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("train/b", "train/a", "val"):
        file = tmp_path / "set" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines([{"text": name}, {"text": name}]))
    splits = Jsonl(str(tmp_path / "set"), None, {}, [], None).read([])
    assert {split: ids(rows) for split, rows in splits.items()} == {
        "train": ["train/a:1", "train/a:2", "train/b:1", "train/b:2"], "val": ["val:1", "val:2"],
    }  # fmt: skip
    for pattern in ("set/train/*.jsonl", "set/t*/?.jsonl"):
        rows = Jsonl(str(tmp_path / pattern), None, {}, [], None).read([])["train"]
        assert [row.rpartition("/")[2] for row in ids(rows)] == ["a:1", "a:2", "b:1", "b:2"]
    compose("train", ["data=jsonl", "train.epochs=1", f"data.path={tmp_path}/set/train/*.jsonl"])
    with pytest.raises(Mistake, match="data.path: there is no .*none"):
        compose("train", ["data=jsonl", f"data.path={tmp_path}/set/none*.jsonl"])
    with pytest.raises(Mistake, match=r"where all its files are to be trained on, say data.path='.*train/\*.jsonl'."):
        Jsonl(str(tmp_path / "set" / "train"), None, {}, [], None).read([])
    assert ids(Jsonl(str(tmp_path / "set"), str(tmp_path / "set" / "train"), {}, [], None).read([])["val"])[0] == "a:1"
    (tmp_path / "set" / "train.jsonl").write_text("{}")
    with pytest.raises(Mistake, match="has train.jsonl and train/b.jsonl, and only one can be the train split"):
        Jsonl(str(tmp_path / "set"), None, {}, [], None).read([])


def test_paths_in_a_shard_are_relative_to_the_folder_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_text(lines([{"image": "cat.png"}]))
    (row,) = Jsonl(str(tmp_path), None, {}, [], None).read([])["train"]
    assert row.items["image"] == (tmp_path / "cat.png",)


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_LINE", 100)
    monkeypatch.setattr(shards, "PIECE", 10)
    long = json.dumps({"text": "x" * 1000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n{long}')
    rows = ids(Jsonl(str(tmp_path / "a.jsonl"), None, {}, [], None).read([])["train"])
    assert rows[0::2] == ["a:1", "a:3"]
    assert rows[1::2] == [f"a.jsonl:{line}: has more than 64 MiB; a line holds one row." for line in (2, 4)]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """30,000 rows, 12 MB of text: none stays."""
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(30_000):
            file.write(f'{{"id": {number}, "text": "{number:0400d}"}}\n')
    rows = Jsonl(str(tmp_path / "a.jsonl"), None, {}, [], None).read([])["train"]
    next(iter(rows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in rows) == 30_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4_000  # KiB


def test_a_mapped_key_that_no_row_has_is_a_mistake(tmp_path: Path) -> None:
    for split, key in (("train", "q"), ("val", "question")):
        (tmp_path / f"{split}.jsonl").write_text(lines([{key: "Why?"}]))
    splits = Jsonl(str(tmp_path), None, {"user": "q", "label": "class"}, ["question"], None).read([])
    assert ids(splits["train"]) == ["train:1"], "the key may come in a later split"
    with pytest.raises(Mistake, match="data.fields.label=class: no row has the key `class`. Keys: q, question."):
        list(splits["val"])


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_what_is_written_as_csv_is_read_again(tmp_path: Path, cells: list[list[str]]) -> None:
    cells = [row for row in cells if row[0]]
    with (tmp_path / "any.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["text", "note"], *cells])
    rows = Csv(str(tmp_path / "any.csv"), None, ",", {}, ["note"], None).read([])["train"]
    if not cells:
        with pytest.raises(Mistake, match="has no rows"):
            list(rows)
        return
    found = list(rows)
    assert [row.items["text"][0] for row in found] == [row[0] for row in cells]
    assert [row.extra.get("note", "") for row in found] == [row[1] for row in cells]


def test_csv_is_told_by_the_line_where_a_record_begins(tmp_path: Path) -> None:
    text = 'id,text\n1,"two\nlines"\n\n2,b,c\n3\n4,\xff\n5,e\n'
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    found = ids(Csv(str(tmp_path / "a.csv"), None, ",", {}, [], None).read([])["train"])
    assert [one[:7] for one in found] == ["1", "a.csv:5", "a.csv:6", "a.csv:7", "5"]
    assert found[1].endswith("has 3 cells, and the first line has 2.")
    assert found[2].endswith("has 1 cell, and the first line has 2.")
    assert "is not UTF-8 at byte 3 of the line; a file in Latin-1 or Windows-1252" in found[3]


TURN = {"system": "Be brief.", "user": "Why?", "assistant": "So."}
FORMATTED: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("openai", {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
     [("system", "Be brief."), ("user", "Why?")]),
    ("openai", {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "What <image> is <b>"}, {"type": "image_url", "image_url": {"url": "cat.png"}}]},
        {"role": "assistant", "content": "A cat.", "tool_calls": None}]},
     [("user", r"What \<image> is <b><image>"), ("assistant", "A cat.")]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
                  "system": "Be brief."}, list(TURN.items())),
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]], "system": ""},
     [("user", "a"), ("assistant", "b"), ("user", "Add.\n1 2"), ("assistant", "3")]),
    ("alpaca", {"instruction": "Add.", "input": "", "output": "3"}, [("user", "Add."), ("assistant", "3")]),
    ("prompt_completion", {"prompt": "Why?", "completion": "So."}, [("user", "Why?"), ("assistant", "So.")]),
    ("prompt_completion", {"prompt": [{"role": "user", "content": "Why?"}],
                           "completion": [{"role": "assistant", "content": "So."}]},
     [("user", "Why?"), ("assistant", "So.")]),
    ("question_answer", {"question": "Why?"}, [("user", "Why?")]),
]  # fmt: skip


@pytest.mark.parametrize("format, record, expected", FORMATTED, ids=lambda one: one if isinstance(one, str) else "")
def test_a_format_is_read(format: str, record: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([{**record, "label": 1, "_kept": 2}]))
    (row,) = Jsonl(str(tmp_path / "a.jsonl"), None, {}, [], format).read([])["train"]
    assert isinstance(row, Row), row
    assert row.messages == tuple(Message(role, content) for role, content in expected)  # type: ignore[arg-type]
    assert row.label == 1 and row.extra == {"_kept": 2}
    assert row.items == ({"image": (tmp_path / "cat.png",)} if "image_url" in str(record) else {})
    assert set(FORMATS) == set(FORMAT_NAMES)


REFUSED = {
    ("openai", '{"messages": [{"role": "tool", "content": "x"}]}'): "the role 'tool': calls of tools are not learnt",
    ("openai", '{"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}'): "message 1 has `tool_calls`",
    ("openai", '{"messages": [{"role": "user", "content": [{"type": "video"}]}]}'): "a part of type 'video', not one",
    ("openai", '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:a"}}]}]}'):
        "`image` is not a path but a URL",
    ("openai", '{"messages": [{"role": "user", "content": "x", "weight": 0}]}'): "has an unknown key `weight`",
    ("sharegpt", '{"conversations": [{"from": "observation", "value": "x"}]}'): "calls of tools",
    ("sharegpt", '{"conversations": []}'): "`conversations` is not a list of messages but an empty one",
    ("sharegpt", '{"messages": []}'): "unknown key `messages`",
    ("alpaca", '{"instruction": [3], "output": "x"}'): "`instruction` is not a string but a list",
    ("alpaca", '{"instruction": "x", "output": "x", "history": [1]}'): "`history` is not a list of [question, answer]",
    ("prompt_completion", '{"prompt": ["x"], "completion": "x"}'): "`completion` is not one but a string",
    ("question_answer", '{"question": "x", "answer": {"text": "x"}}'): "`answer` is not a string but an object",
    (None, '{"conversations": [], "id": 1}'): "unknown key `conversations`; did you mean data.format=sharegpt?",
    (None, '{"instruction": "x", "output": "y"}'): "did you mean data.format=alpaca?",
    (None, '{"prompt": "x", "completion": "y"}'): "did you mean data.format=prompt_completion?",
    (None, '{"question": "x", "answer": "y"}'): "did you mean data.format=question_answer?",
    (None, '{"messages": [{"role": "developer", "content": "x"}]}'): "Did you mean data.format=openai?",
}  # fmt: skip


@pytest.mark.parametrize("format, line", REFUSED)
def test_what_a_format_has_not_is_refused(format: str | None, line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    (row,) = Jsonl(str(tmp_path / "a.jsonl"), None, {}, [], format).read([])["train"]
    assert isinstance(row, BadRow) and REFUSED[format, line] in row.reason, row


def picture_set() -> Any:
    from datasets import Audio, ClassLabel, Dataset, Features, List, Value
    from datasets import Image as Picture

    with wave.open("beep.wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.arange(100, dtype="<i2").tobytes())
    sound = {
        "bytes": Value("binary"),
        "path": Value("string"),
    }  # Audio itself encodes by a library that is not needed here
    features = {"image": List(Picture()), "audio": sound, "label": ClassLabel(names=["cat", "dog"])}
    rows = {
        "image": [["cat.png"], ["cat.png", "cat.png"]], "label": [1, -1], "question": ["?", "?"],
        "audio": [{"bytes": Path("beep.wav").read_bytes(), "path": "beep.wav"}, None],
    }  # fmt: skip
    return Dataset.from_dict(rows, features=Features({**features, "question": Value("string")})).cast_column(
        "audio", Audio()
    )


@pytest.mark.parametrize("kind", ["saved", "files", "streamed"])
def test_pictures_and_sounds_inside_a_set_become_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    whole = picture_set()
    (tmp_path / "set").mkdir()
    if kind == "saved":
        whole.save_to_disk("set")
    else:
        whole.to_parquet("set/train.parquet")
        (tmp_path / "cat.png").rename(tmp_path / "set" / "cat.png")
    source = hub(
        path="set", items_folder=str(tmp_path / "cache"), streaming=kind == "streamed", format="question_answer"
    )
    found = list(source.read(["image"])["train"])
    assert [row.label for row in found] == ["dog", None]
    assert [len(row.items["image"]) for row in found] == [1, 2]
    for row in found:
        for item in row.items["image"]:
            assert decode("image", item).getpixel((0, 0)) == (200, 100, 0)
    samples, rate = decode("audio", found[0].items["audio"][0])
    assert rate == 8000 and samples.shape == (1, 100)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "items").rglob("*") if file.is_file()}
    assert len(kept) == (2 if kind == "saved" else 1), "the same content is one file; what is a file stays where it is"
    assert list(source.read(["image"])["train"]) == found
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    with pytest.raises(Mistake, match=r"set/train: the column `image` holds items itself; .*data.items_folder"):
        hub(path="set", format="question_answer").read(["image"])


def test_a_set_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"]}).save_to_disk("set")
    with pytest.raises(Mistake, match="data.splits.train=trian: the set has train; did you mean train?"):
        hub(path="set", splits={"train": "trian"}).read([])
    with pytest.raises(Mistake, match="give one of data.id"):
        hub()
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(Mistake, match="data.id=owner/name: the hub cannot be reached"):
        hub(id="owner/name").read([])
    assert hub(id="owner/name", revision="main").fingerprint() is None
    assert hub(id="owner/name", revision="0" * 40).fingerprint()


def unreachable(place: str, **given: Any) -> None:
    """What `datasets` raises after half a minute of retries without a network."""
    assert place == "owner/name" and given == {"name": None, "streaming": False, "revision": None}
    raise ConnectionError("Couldn't reach 'owner/name' on the Hub (LocalEntryNotFoundError)")


POINTS = [{"text": str(k), "grade": k % 3, "type": "algebra" if k % 2 else "geometry"} for k in range(1, 31)]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("qdrant")
    collection(folder, POINTS)
    yield folder / "points"


FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({}, lambda one: True),
    ({"grade": 2}, lambda one: one["grade"] == 2),
    ({"grade": 2, "type": "algebra"}, lambda one: one["grade"] == 2 and one["type"] == "algebra"),
    ({"type": ["algebra", "geometry"], "grade": {"gte": 1}}, lambda one: one["grade"] >= 1),
    ({"grade": {"gt": 0, "lt": 2}}, lambda one: one["grade"] == 1),
]


@pytest.mark.parametrize("wanted, holds", FILTERS, ids=lambda one: str(one) if isinstance(one, dict) else "")
def test_a_filter_chooses_points_in_the_order_of_their_ids(
    wanted: dict[str, Any], holds: Callable[[dict[str, Any]], bool], points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.data.qdrant.BATCH", 7)
    source = qdrant(path=str(points), filter=wanted, val_filter={"grade": 1}, extra=["grade", "type"])
    splits = source.read([])
    rows = list(splits["train"])
    assert [row.items["text"][0] for row in rows] == [one["text"] for one in POINTS if holds(one)]
    assert rows[0].where == f"rows/{rows[0].id}"
    assert len(list(splits["val"])) == 10


QDRANT_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"collection": "row"}, "data.collection: there is no row; did you mean rows?"),
    ({"filter": {"grade": {"from": 3}}}, "data.filter.grade.from is none of gt, gte, lt, lte"),
    ({"filter": {"grade": 1.5}}, "data.filter.grade=1.5: a value is a text, a whole number"),
    ({"filter": {"grade": 9}}, "rows with data.filter={'grade': 9}, the train split, has no rows."),
    ({"path": "nowhere"}, "nowhere is not a folder of Qdrant's embedded mode"),
    ({"url": "http://127.0.0.1:9"}, "give one of data.url"),
    ({"url": "http://127.0.0.1:9", "path": None}, "no Qdrant server answers there within 1 s"),
]


@pytest.mark.parametrize("changed, said", QDRANT_MISTAKES, ids=lambda one: str(one)[:40])
def test_what_qdrant_has_not_is_told(changed: dict[str, Any], said: str, points: Path) -> None:
    with pytest.raises(Mistake) as told:
        list(qdrant(**{"path": str(points), "extra": ["grade", "type"], **changed}).read([])["train"])
    assert said in str(told.value)


@contextmanager
def server(status: int | None) -> Iterator[str]:
    """The URL of one that answers everything so; of one that takes a connection and says nothing."""
    if status is None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}"
        return

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


SERVERS = {
    None: "no Qdrant server answers there within 1 s",
    401: r"the server refuses the key. Set data.api_key='${oc.env:NAME}'.",
    404: "the server says 404 Not Found.",
}


@pytest.mark.parametrize("status", SERVERS)
def test_what_a_server_says_is_told_in_a_sentence(status: int | None) -> None:
    began = time.monotonic()
    with server(status) as url, pytest.raises(Mistake) as told:
        qdrant(url=url).read([])
    assert SERVERS[status] in str(told.value) and url in str(told.value)
    assert time.monotonic() - began < 8


def test_a_missing_library_is_named(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.data.qdrant.find_spec", lambda _: None)
    with pytest.raises(Mistake, match=r"Install it by pip install 'multimodal-runner\[qdrant\]'"):
        qdrant(path=str(points))


def test_a_collection_that_stays_open_elsewhere_is_told(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdrant_client import QdrantClient

    monkeypatch.setattr("runner.data.qdrant.PATIENCE", 0.3)
    client = QdrantClient(path=str(points))
    try:
        with pytest.raises(Mistake, match="another program has it open"):
            qdrant(path=str(points)).read([])
    finally:
        client.close()


def test_a_collection_that_is_open_for_a_moment_is_waited_for(points: Path) -> None:
    with (points / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the embedded mode itself does
        timer = threading.Timer(0.3, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        began = time.monotonic()
        timer.start()
        assert list(qdrant(path=str(points), extra=["grade", "type"]).read([]))
        assert time.monotonic() - began >= 0.3
        timer.join()


def test_a_runs_processes_take_turns_at_a_collection(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has every point, however long it takes over one; waiting for each other is not what patience is for."""
    monkeypatch.setattr("runner.data.qdrant.PATIENCE", 0)
    begun = iter(qdrant(path=str(points), extra=["grade", "type"]).read([])["train"])
    next(begun)
    together = threading.Barrier(3)

    def read(_: int) -> list[str]:
        together.wait(timeout=5)
        return ids(qdrant(path=str(points), extra=["grade", "type"]).read([])["train"])

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(read, range(3))) == [[str(k) for k in range(1, 31)]] * 3
    assert ids(begun) == [str(k) for k in range(2, 31)]
