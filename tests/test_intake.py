"""Rows that are read once: what is kept is used where it is the same, and made anew where something else would come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_stream import Reader, defaults

from runner.data.folder import Folder
from runner.data.intake import Split, take_in
from runner.data.jsonl import Jsonl
from runner.data.mixture import Mixture
from runner.data.stream import open_stream
from runner.protocols import Mistake, Row


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"label": 3, **row}) + "\n" for row in rows))
    return file


def picture(file: Path, level: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(file)


def taken(source: Any, tmp_path: Path, split: str = "train", **changed: Any) -> Split:
    given = replace(defaults(), cache=str(tmp_path / "cache"), **changed)
    return take_in(split, source.read(["image"])[split], Reader(), given, source.fingerprint(), False)


def jsonl(path: Path, **fields: Any) -> Jsonl:
    return Jsonl(str(path), None, fields, [], None)


def ids(split: Split) -> list[str]:
    return [one.id for one in split.examples]


def entries(tmp_path: Path) -> int:
    return len([one for one in (tmp_path / "cache" / "rows").iterdir() if one.is_dir()])


def test_rows_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", {"id": "a"}, {"id": "b", "extra_": 1} | {"_note": [1]})
    file.write_text(file.read_text().replace(', "extra_": 1', ""))
    first = taken(jsonl(file), tmp_path)
    monkeypatch.setattr(Reader, "example", lambda *_: pytest.fail("they are read again"))
    again = taken(jsonl(file), tmp_path)
    assert ids(again) == ids(first) == ["a", "b"] and again.digest == first.digest and again.bad == first.bad
    assert again.examples[1].row == first.examples[1].row and again.lengths == first.lengths


def test_the_same_file_elsewhere_has_its_own_items(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"id": "a", "image": "img/0.png"})
    for name in ("one", "two"):
        picture(tmp_path / name / "img" / "0.png")
        (tmp_path / name / "train.jsonl").symlink_to(file)
    found = [taken(jsonl(tmp_path / name), tmp_path).examples[0].row.items["image"] for name in ("one", "two")]
    assert found == [((tmp_path / name / "img" / "0.png"),) for name in ("one", "two")]


def test_a_slip_in_the_fields_is_told_each_time(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / "data" / f"{split}.jsonl", {"id": "a"})
    for _ in range(2):
        source = Jsonl(str(tmp_path / "data"), None, {"image": "imgae"}, [], None)
        with pytest.raises(Mistake, match="data.fields.image=imgae: no row has the key"):
            given = replace(defaults(), cache=str(tmp_path / "cache"))
            for split, rows in source.read([]).items():
                take_in(split, rows, Reader(), given, source.fingerprint(), False)


def test_a_mended_picture_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"id": "a", "image": "a.png"}, {"id": "b", "image": "b.png"}, {"id": "c"})
    picture(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no picture")
    skip = {"on_bad_row": "skip", "max_bad_share": 0.5}
    assert ids(taken(jsonl(file), tmp_path, **skip)) == ["b", "c"]
    picture(tmp_path / "a.png")
    assert ids(taken(jsonl(file), tmp_path, **skip)) == ["a", "b", "c"]
    (tmp_path / "b.png").unlink()
    file.touch()
    assert ids(taken(jsonl(file), tmp_path, **skip)) == ["a", "c"]
    picture(tmp_path / "b.png")
    assert ids(taken(jsonl(file), tmp_path, **skip)) == ["a", "b", "c"]


def test_an_id_belongs_to_the_first_row_that_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    rows = [{"id": "a", "image": "a.png"}, {"id": "z"}, {"id": "a"}, {"id": "a"}]
    split = taken(jsonl(write(tmp_path / "a.jsonl", *rows)), tmp_path, on_bad_row="skip", max_bad_share=0.9)
    assert ids(split) == ["z", "a"]
    assert "a.jsonl:4: has the id `a`, which a.jsonl:3 has already." in "\n".join(split.bad.lines)


def test_other_settings_and_another_order_of_sources_are_other_rows(tmp_path: Path) -> None:
    one, two = (jsonl(write(tmp_path / f"{name}.jsonl", {"id": name})) for name in ("x", "y"))
    assert ids(taken(Mixture({"x": one, "y": two}, None), tmp_path)) == ["x/x", "y/y"]
    assert ids(taken(Mixture({"y": two, "x": one}, None), tmp_path)) == ["y/y", "x/x"]
    assert entries(tmp_path) == 2
    taken(Mixture({"y": two, "x": one}, None), tmp_path, learn="last")
    assert entries(tmp_path) == 3


def test_a_mixture_is_gone_through_and_told_by_its_names(tmp_path: Path) -> None:
    sources = {name: jsonl(write(tmp_path / name / "train.jsonl", {"id": "a"})) for name in ("x", "y")}
    mixed = Mixture(sources, {"x": 1, "y": 2}).read([])["train"]
    assert [row.where for row in mixed if isinstance(row, Row)] == ["x/train.jsonl:1", "y/train.jsonl:1"]
    with pytest.raises(Mistake, match="data.sources.deep is a mixture by weights itself"):
        Mixture({"deep": Mixture(sources, {"x": 1, "y": 2}), "x": sources["x"]}, None).read([])
    (tmp_path / "y" / "train.jsonl").write_text('{"id": "b", "label": true}\n{"id": "b", "label": 1}\n'[:27] + "\n")
    with pytest.raises(Mistake, match="data.sources.y: none of its rows is left to draw from"):
        taken(Mixture(sources, {"x": 1, "y": 2}), tmp_path, on_bad_row="skip", max_bad_share=1.0)


def test_a_stream_whose_file_changed_is_another(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({"id": str(k)} for k in range(9)))
    given = replace(defaults(), buffer=2)

    def digest() -> str:
        source = jsonl(file)
        return open_stream("train", source.read([])["train"], Reader(), given, 0, source.fingerprint()).digest

    before = digest()
    assert digest() == before
    write(file, *({"id": str(k)} for k in (0, 1, 2, 5, 6, 7, 8)))
    assert digest() != before


def test_a_folder_of_pictures_needs_no_fingerprint(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / "pictures" / name / "1.png")
    source = Folder(str(tmp_path / "pictures"), None, None, 0, None)
    given = replace(defaults(), cache=str(tmp_path / "cache"))
    labelled = [replace(row, label=2) for row in source.read([])["train"]]
    assert len(take_in("train", labelled, Reader(), given, None, False).examples) == 2
    assert not (tmp_path / "cache").exists()
