"""Rows from JSONL files and from the digits: what is read, and what is refused in which words."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runner.data.bad_rows import BadRows
from runner.data.digits import Digits
from runner.data.jsonl import Jsonl
from runner.data.rows import check_modalities, split_content
from runner.generate import checked
from runner.protocols import BadRow, Message, Mistake, Row

SHARED = Path(os.environ.get("RUNNER_TEST_DATA", Path(__file__).parents[2] / "shared"))
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(folder: Path, *lines: object, name: str = "train.jsonl") -> Path:
    file = folder / name
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(texts) + b"\n")
    return file


def sound(rows: Iterable[Row | BadRow]) -> list[Row]:
    return list(BadRows("train", "error", 0).sound(checked(rows)))


def read(
    path: Path,
    modalities: tuple[str, ...] = (),
    fields: dict | None = None,
    extra: tuple[str, ...] = (),
    format: str | None = None,
) -> list[Row]:
    return sound(Jsonl(str(path), None, fields or {}, list(extra), format).read(modalities)["train"])


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(Mistake) as mistake:
        read(path, **arguments)
    return str(mistake.value)


def test_a_row_with_everything(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "cat.png")
    line = {"id": 7, "messages": TALK, "label": 3, "image": {"items": ["cat.png", "cat.png"]}, "audio": None}
    line |= {"text": "a cat", "series": [[1, 2.5], [3, 4]], "ecg": [[0.5]], "_note": "x", "source": "web"}
    (row,) = read(write(tmp_path, line), modalities=("image", "ecg"), extra=("source",))
    assert row.id == "7" and row.where == "train.jsonl:1" and row.label == 3
    assert row.messages == (Message("user", "Hi"), Message("assistant", "Hello"))
    assert row.items == {
        "image": (tmp_path / "cat.png", tmp_path / "cat.png"),
        "text": ("a cat",),
        "series": ([[1, 2.5], [3, 4]],),
        "ecg": ([[0.5]],),
    }
    assert row.extra == {"_note": "x", "source": "web"}


def test_bytes_and_lines(tmp_path: Path) -> None:
    separator = json.dumps({"messages": [{"role": "user", "content": "a\u2028b"}]}, ensure_ascii=False).encode()
    talk = json.dumps({"messages": TALK}).encode()
    file = write(tmp_path, b"\xef\xbb\xbf" + talk + b"\r", b"", b"  \r", separator)
    rows = read(file)
    assert [row.id for row in rows] == ["train:1", "train:4"]
    assert rows[1].messages[0].content == "a\u2028b"


def test_folder_and_val_path(tmp_path: Path) -> None:
    for split in ("train", "val", "test", "other"):
        write(tmp_path, {"id": split, "messages": TALK}, name=f"{split}.jsonl")
    splits = Jsonl(str(tmp_path), None, {}, [], None).read(())
    assert {split: next(iter(rows)).id for split, rows in splits.items()} == {
        "train": "train",
        "val": "val",
        "test": "test",
    }
    splits = Jsonl(str(tmp_path / "train.jsonl"), str(tmp_path / "other.jsonl"), {}, [], None).read(())
    assert {split: next(iter(rows)).id for split, rows in splits.items()} == {"train": "train", "val": "other"}


LINES = {
    b"{": "is not JSON",
    b"[1]": "is not a JSON object but a list",
    b'{"label": NaN}': "holds NaN, which is not a finite number",
    b'{"label": -Infinity}': "holds -Infinity",
    b'{"label": 1e999}': "holds 1e999",
    b'{"label": 1, "label": 2}': "has the key `label` twice",
    b'{"label": "\xff"}': "is not UTF-8 at byte 12",
    b'{"label": "\\ud800"}': "half of a surrogate pair",
    b"\xef\xbb\xbf{}": "is not JSON",
    b"[" * 100_000: "is nested too deeply",
    b'{"label": true}': "its label is not a string or a number but a boolean",
    b'{"id": 1.5}': "its id is not a string or a whole number",
    b'{"id": ""}': "its id is not a string or a whole number but empty",
    b'{"lable": 1}': "unknown key `lable`; did you mean label?",
    b'{"messages": []}': '`messages` is not a list of {"role", "content"}',
    b'{"messages": [{"role": "user", "contents": "x"}]}': "unknown key `contents`; did you mean content?",
    b'{"messages": [{"role": "bot", "content": "x"}]}': "message 1 has the role 'bot'",
    b'{"messages": [{"role": "user", "content": ["x"]}]}': "the content of message 1 is not a string but a list",
    b'{"messages": [{"role": "system", "content": "x"}]}': "has no user turn",
    b'{"messages": [{"role": "assistant", "content": "x"}]}': "message 1 is the assistant's where the user's is due",
    b'{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]}': "message 2 is the user's",
    b'{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}': "message 2 is the system",
    b'{"messages": [{"role": "user", "content": "<image>"}]}': r"hold 1 <image> and the row has 0 `image` items",
    b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<image>"}]}': "assistant's",
    b'{"image": "none.png"}': "`image` does not exist: 'none.png'; paths are relative to",
    b'{"image": "a\\u0000b"}': "`image` does not exist",
    b'{"image": "https://example.org/a.png"}': "not a path but a URL",
    b'{"image": "../outside.png"}': "`image` lies outside",
    b'{"image": "link.png"}': "`image` lies outside",
    b'{"image": "folder"}': "`image` is not a regular file",
    b'{"image": "pipe"}': "`image` is not a regular file",
    b'{"image": [1]}': "an item of `image` is not a path but a list",
    b'{"image": {"item": []}}': "`image` has an unknown key `item`",
    b'{"image": {"items": "a"}}': 'the "items" of `image` are not a list',
    b'{"text": 3}': "an item of `text` is not a string but a number",
    b'{"series": []}': "has no channel",
    b'{"series": [[1], 2]}': "channel 2 of `series` is not a list of numbers",
    b'{"series": [[1, 2], [3]]}': "channel 2 of `series` has 1 numbers, the first 2",
    b'{"series": [[1, "2"]]}': "channel 1 of `series` holds 2, not a finite float32 number",
    b'{"series": [[1e300]]}': "not a finite float32 number",
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40].decode("latin-1"))
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, line: bytes) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    (tmp_path / "outside.png").write_bytes(b"x")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    text = refusal(write(root, {"messages": TALK}, line))
    assert f"train.jsonl:2: {LINES[line]}" in text or (LINES[line] in text and "train.jsonl:2: " in text)
    assert "data, train: 1 row cannot be used." in text and "data.on_bad_row=skip" in text


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    lines = [{"lable": 1}] * 30 + [{f"key{k:02d}": 1} for k in range(12)] + [{"id": "a"}, {"id": "b"}, {"id": "a"}]
    text = refusal(write(tmp_path, *lines))
    assert "data, train: 43 rows cannot be used." in text
    assert "train.jsonl:1 and 29 more: has an unknown key `lable`" in text
    assert "`key08`" in text and "`key09`" not in text and "... and 4 more rows." in text
    assert "train.jsonl:3: has the id `a`, which train.jsonl:1 has already." in refusal(write(tmp_path, *lines[-3:]))


def test_fields_map_columns(tmp_path: Path) -> None:
    file = write(tmp_path, {"id": "a", "q": "Why?", "text": "So.", "sys": "Be brief."}, {"q": "What?"})
    fields = {"system": "sys", "user": "q", "assistant": "text", "label": None, "image": None}
    rows = read(file, fields=fields)
    assert [message.content for message in rows[0].messages] == ["Be brief.", "Why?", "So."]
    assert [message.role for message in rows[1].messages] == ["user"]
    assert not rows[0].items, "a key that is mapped to the answer is not read as an item of `text` too"


def test_gsm8k_loads_with_two_fields() -> None:
    folder = SHARED / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip("needs RUNNER_TEST_DATA")
    splits = Jsonl(str(folder), None, {"id": None, "user": "question", "assistant": "answer"}, [], None).read(())
    assert {split: len(list(rows)) for split, rows in splits.items()} == {"train": 2000, "val": 200, "test": 200}
    assert next(iter(splits["train"])).messages[1].content.endswith("#### 28")


FIELDS = {
    ("usr", "q"): "data.fields.usr is not a field of a row; did you mean user?",
    ("user", "question"): "data.fields.user=question: no row has the key `question`",
    ("assistant", "q"): "names assistant without user",
    ("label", "kept"): "data.extra and data.fields.label both name `kept`",
}


@pytest.mark.parametrize("ours, theirs", FIELDS)
def test_a_bad_mapping_is_refused(tmp_path: Path, ours: str, theirs: str) -> None:
    file = write(tmp_path, {"q": "Why?", "kept": 1})
    assert FIELDS[ours, theirs] in refusal(file, fields={ours: theirs}, extra=("kept",))
    both = {"user": "q", "messages": "kept"}
    assert "data.fields names messages and user" in refusal(file, fields=both)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    write(tmp_path, {"messages": TALK})
    assert "did you mean train.jsonl?" in refusal(tmp_path / "trian.jsonl")
    assert "has no rows" in refusal(write(tmp_path, b"", name="empty.jsonl"))
    with pytest.raises(Mistake, match="data.val_path: there is no file"):
        Jsonl(str(tmp_path), str(tmp_path / "none.jsonl"), {}, [], None).read(())


@given(st.lists(st.sampled_from(["<image>", r"\<image>", "\\", "<", "image>", " a", "<ecg>"])))
def test_placeholders_and_escapes(parts: list[str]) -> None:
    content = "".join(parts)
    texts, found = split_content(content, ("image", "ecg"))
    assert len(texts) == len(found) + 1
    # Escaping what is literal and writing the places again gives a content that is read as the same thing.
    again = texts[0].replace("<image>", r"\<image>").replace("<ecg>", r"\<ecg>")
    for name, text in zip(found, texts[1:], strict=True):
        if again.endswith("\\"):
            return  # a backslash right before a place cannot be written
        again += f"<{name}>" + text.replace("<image>", r"\<image>").replace("<ecg>", r"\<ecg>")
    assert split_content(again, ("image", "ecg")) == (texts, found)


def test_escape() -> None:
    assert split_content(r"a <image> b \<image> c \\<image>", ("image",)) == (
        ["a ", r" b <image> c \<image>"],
        ["image"],
    )


def test_items_without_an_encoder_are_refused() -> None:
    row = Row("a", "train.jsonl:3", items={"audio": ("a.wav",)})
    check_modalities([row], ["audio"])
    with pytest.raises(Mistake, match=r"train.jsonl:3 .*`audio`.*encoder/audio=.*data.extra=\[audio\]"):
        check_modalities([row], ["image"])


def test_digits() -> None:
    splits = Digits(0.2).read(("image",))
    train, val = splits["train"], splits["val"]
    assert len(train) + len(val) == 1797 and abs(len(val) - 359) <= 1
    assert not {row.id for row in train} & {row.id for row in val}
    counts, total = Counter(row.label for row in val), Counter(row.label for row in [*train, *val])
    assert all(abs(counts[word] - 0.2 * total[word]) <= 1 for word in total) and len(total) == 10
    again = Digits(0.2).read(("image",))
    assert [row.id for row in again["val"]] == [row.id for row in val]
    picture = train[0].items["image"][0]
    assert picture.mode == "L" and picture.size == (8, 8)
    assert max(np.asarray(row.items["image"][0]).max() for row in train[:50]) == 255
    assert train[0].label == train[0].messages[1].content


def test_the_question_about_a_digit_does_not_tell_the_answer() -> None:
    rows = Digits(0.5).read(("image",))["train"]
    questions = Counter(row.messages[0].content for row in rows)
    assert 3 <= len(questions) <= 5
    by_question = Counter((row.messages[0].content, row.label) for row in rows)
    guessed = sum(
        max(count for (asked, _), count in by_question.items() if asked == question) for question in questions
    )
    assert guessed / len(rows) < 0.16
