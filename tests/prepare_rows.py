"""Rows for the tests of `runner prepare`, and what it wrote of them."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from runner.config import compose
from runner.protocols import Row
from runner.seats import mixed_seat
from runner.settings import Data

TEXTS = [
    "Mai có 12 quả táo và cho bạn 5 quả. Hỏi Mai còn lại bao nhiêu quả táo?",
    "A train leaves at nine and arrives three hours later. When does it arrive?",
    "小明有十二个苹果,给了朋友五个。他还剩几个苹果?请写出过程。",
    "What is the area of a rectangle with sides of 7 cm and 9 cm?",
]


def worded(k: int) -> str:
    """A question that is far from those of other numbers."""
    return f"{TEXTS[k % 4]} {sha256(str(k).encode()).hexdigest()}"


def row_of(id: str, question: str, answer: str = "7", **besides: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": id, "messages": turns, **besides}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def ids_of(folder: Path) -> dict[str, list[str]]:
    files = [file for file in folder.glob("*.jsonl") if file.stem != "dropped"]
    return {file.stem: [line["id"] for line in lines_of(file)] for file in files}


def read(path: Path, *overrides: str) -> dict[str, list[Row]]:
    words = ["data=jsonl", f"data.path={path}", "model=chat", "train.max_steps=1", *overrides]
    source = mixed_seat(compose("train", words), "data", Data)
    return {split: list(rows) for split, rows in source.read([]).items()}
