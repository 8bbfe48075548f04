"""`runner prepare`: each row goes to one split or is counted as left out, and what is written reads back as it came."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prepare_rows import TEXTS, ids_of, lines_of, read, row_of, worded, write_rows

from runner import fingerprint
from runner.cli import main
from runner.config import Composed, compose
from runner.data.decode import decode
from runner.prepare import prepare
from runner.preparing.writing import placed
from runner.protocols import Fault, Mistake

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(["prepare", "data=jsonl", *words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture(scope="module")
def base() -> Composed:
    return compose("prepare", ["data=jsonl", "data.path=.", "prepare.output=set", "prepare.languages=false"])


def prepared(base: Composed, path: Path, data: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """The verb on `path`, with settings of `data` and `prepare` that are not the defaults."""
    own = {"data": {"path": str(path), **data}, "prepare": asked}
    tree = base.tree | {name: base.tree[name] | values for name, values in own.items()}
    return prepare(replace(base, tree=tree))


def raw_rows(folder: Path) -> Path:
    """40 questions with pictures for half of them, a duplicate, a near-duplicate, a conflict, and a shared picture."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for k in range(40):
        row = row_of(f"r{k}", worded(k), str(k), label="even" if k % 2 else "odd")
        row |= {"grade": k % 5, "when": f"2024-01-{k % 28 + 1:02d}"}
        if k % 2 == 0:
            pixels = np.random.default_rng(k).integers(0, 255, (6, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"pictures/{k}.PNG")
            row["image"] = f"pictures/{k}.PNG"
        rows.append(row)
    rows.append({**rows[1], "id": "again"})
    rows.append(
        {
            **row_of("nearly", rows[3]["messages"][0]["content"] + " ", "3"),
            "label": "even",
            "grade": 1,
            "when": "2024-02-01",
        }
    )
    rows[-1]["messages"][0]["content"] = rows[3]["messages"][0]["content"].upper()
    rows.append(
        {
            **row_of("otherwise", rows[5]["messages"][0]["content"], "6"),
            "label": "even",
            "grade": 1,
            "when": "2024-02-01",
        }
    )
    rows.append(
        {
            **row_of("same picture", "Is this picture the one of another row, or is it not?", "Yes."),
            "label": "odd",
            "grade": 1,
            "when": "2024-02-02",
        }
    )
    rows[-1]["image"] = rows[0]["image"]
    return write_rows(folder / "raw.jsonl", rows)


def test_a_dataset_is_written_and_reads_back_as_the_rows_that_came(cli: Cli, base: Composed, tmp_path: Path) -> None:
    raw = raw_rows(tmp_path / "raw")
    words = (f"data.path={raw}", "data.extra=[grade,when]", "prepare.output=set", "prepare.stratify_by=label")
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    folder = tmp_path / "set"
    assert "data=jsonl data.path=set" in out and "nearly the same question, the same answer" in " ".join(out.split())
    placed = ids_of(folder)
    dropped = {line["id"]: (line["reason"], line["same_as"]) for line in lines_of(folder / "dropped.jsonl")}
    assert dropped == {"again": ("duplicate", "r1"), "nearly": ("near_duplicate", "r3")}
    assert sorted([*dropped, *(id for ids in placed.values() for id in ids)]) == sorted(
        line["id"] for line in lines_of(raw)
    )
    assert {split: len(ids) for split, ids in placed.items()} == {"train": 34, "val": 4, "test": 4}
    where = {id: split for split, ids in placed.items() for id in ids}
    assert where["r5"] == where["otherwise"] and where["r0"] == where["same picture"]
    report = json.loads((folder / "quality.json").read_text())
    assert report["duplicates"]["same_question_other_answer"]["examples"] == [["r5", "otherwise"]]
    assert report["leaks"] == [] and report["read"] == {"train": {"rows": 44, "bad": 0}}
    assert sum(report["splits"][split]["rows"] for split in placed) == 42
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    } - {"manifest.json"}
    for name, kept in manifest["files"].items():
        assert kept["sha256"] == fingerprint.of_file(folder / name) and kept["bytes"] == (folder / name).stat().st_size
    assert manifest["files"]["train.jsonl"]["rows"] == 34 and manifest["dropped"] == {
        "duplicate": 1,
        "near_duplicate": 1,
    }
    came = {row.id: row for row in read(raw, "data.extra=[grade,when]")["train"]}
    for split, rows in read(folder).items():
        assert [row.id for row in rows] == placed[split]
        for row in rows:
            assert (row.messages, row.label) == (came[row.id].messages, came[row.id].label)
            assert row.extra == {f"_{name}": value for name, value in came[row.id].extra.items()}
            pictures = [
                [np.asarray(decode("image", one)) for one in some.items.get("image", ())]
                for some in (row, came[row.id])
            ]
            np.testing.assert_array_equal(*pictures)
    before = manifest["files"]
    (raw.parent / "turned.jsonl").write_text("\n".join(reversed(raw.read_text().splitlines())))
    asked: dict[str, Any] = {"stratify_by": "label", "overwrite": True}
    prepared(base, raw.with_name("turned.jsonl"), {"extra": ["grade", "when"]}, **asked)
    assert {split: set(ids) for split, ids in ids_of(folder).items()} == {
        split: set(ids) for split, ids in placed.items()
    }
    prepared(base, raw, {"extra": ["grade", "when"]}, items="link", languages=True, **asked)
    assert json.loads((folder / "manifest.json").read_text())["files"] == before
    assert any(os.path.samefile(raw.parent / "pictures/2.PNG", file) for file in (folder / "items").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "set"]


SOURCE = '''
import numpy as np
from PIL import Image
from runner.protocols import Row

class Made:
    """Pictures, sounds and numbers that are in memory alone."""

    def read(self, modalities):
        draw = np.random.default_rng(0)
        return {"train": [Row(f"row-{k}", f"made {k}", items={
            "image": (Image.fromarray(draw.integers(0, 255, (4, 5)).astype(np.uint8)),),
            "audio": ((draw.normal(size=(2, 90)).astype(np.float32) / 9, 8000),),
            "series": (draw.normal(size=(2, 3 if k % 2 else 900)).astype(np.float32), [[1.5, None, k]]),
        }, label=k % 2) for k in range(20)]}
'''


def test_items_in_memory_become_files_that_decode_to_the_same(tmp_path: Path) -> None:
    conf = tmp_path / "mine"
    (conf / "data").mkdir(parents=True)
    (conf / "made.py").write_text(SOURCE)
    (conf / "data/made.yaml").write_text("# Made here.\n_target_: made.Made\n")
    found = prepare(compose("prepare", ["data=made", "prepare.output=set", "prepare.stratify_by=label"], conf))
    assert found["items"]["train"]["audio"]["rate"]["max"] == 8000
    assert found["items"]["train"]["series"]["steps"]["max"] == 900
    made: dict[str, Any] = {}
    exec(SOURCE, made)
    came = {row.id: row for row in made["Made"]().read([])["train"]}
    rows = [row for some in read(tmp_path / "set").values() for row in some]
    assert len(rows) == 20
    for row in rows:
        for modality, items in came[row.id].items.items():
            for one, other in zip(row.items[modality], items, strict=True):
                there, expected = decode(modality, one), decode(modality, other)
                if modality == "audio":
                    assert there[1] == expected[1]
                    there, expected = there[0], expected[0]
                np.testing.assert_array_equal(np.asarray(there), np.asarray(expected))
    suffixes = Counter(file.suffix for file in (tmp_path / "set/items").iterdir())
    assert suffixes == {".png": 20, ".wav": 20, ".npy": 10}


def own_splits(folder: Path) -> Path:
    """val shares a question with train, and test a near-duplicate and a picture."""
    questions = [worded(k) for k in range(12)]
    (folder / "a.png").parent.mkdir()
    for name, grey in (("a", 10), ("b", 200), ("copy", 10)):
        Image.new("L", (4, 4), grey).save(folder / f"{name}.png")
    train = [row_of(f"t{k}", question, str(k)) for k, question in enumerate(questions[:8])]
    write_rows(folder / "train.jsonl", [*train, row_of("t8", "What do you see here?", "Dusk.", image="a.png")])
    write_rows(folder / "val.jsonl", [row_of("v0", questions[0], "other"), row_of("v1", questions[8])])
    pictured = row_of("s1", "Name the time of the day, please.", "Dusk.", image="copy.png")
    write_rows(
        folder / "test.jsonl", [row_of("s0", questions[1] + "!"), pictured, row_of("s2", "Which?", image="b.png")]
    )
    return folder


def test_leaks_between_the_sources_own_splits(
    base: Composed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = own_splits(tmp_path / "own")
    report = prepared(base, source, {}, output="reported")
    assert "prepare.leaks=drop" in capfd.readouterr().out
    assert {split: len(ids) for split, ids in ids_of(tmp_path / "reported").items()} == {
        "train": 9,
        "val": 2,
        "test": 3,
    }
    assert [(one["splits"], one["kind"], one["rows"], one["examples"]) for one in report["leaks"]] == [
        (["train", "val"], "question", [1, 1], [["t0", "v0"]]),
        (["train", "test"], "near", [1, 1], [["t1", "s0"]]),
        (["train", "test"], "item", [1, 1], [["t8", "s1"]]),
    ]
    assert prepared(base, source, {}, output="dropped", leaks="drop")["leaks"] == []
    assert ids_of(tmp_path / "dropped")["train"] == [f"t{k}" for k in range(2, 8)]
    with pytest.raises(Mistake, match="1 of val with train, 2 of test with train"):
        prepared(base, source, {}, output="refused", leaks="error")
    with pytest.raises(Mistake, match="prepare.splits=drawn"):
        prepared(base, source, {}, output="refused", stratify_by="label")
    assert not (tmp_path / "refused").exists()


def test_rows_of_one_group_stay_together_and_the_newest_are_held_out(base: Composed, tmp_path: Path) -> None:
    raw, data = raw_rows(tmp_path / "raw"), {"extra": ["grade", "when"]}
    alone = {"near_duplicates": None, "shared_items": "apart"}
    prepared(base, raw, data, output="grades", group_by="grade", val_share=0.2, **alone)
    splits = ("train", "val", "test")
    grades = {split: {line["_grade"] for line in lines_of(tmp_path / f"grades/{split}.jsonl")} for split in splits}
    assert sum(map(len, grades.values())) == 5 == len(set().union(*grades.values()))
    prepared(base, raw, data, output="times", time_by="when", compare="all", **alone)
    times = {split: [line["_when"] for line in lines_of(tmp_path / f"times/{split}.jsonl")] for split in splits}
    assert sum(time > "2024-02" for time in times["test"]) == 3  # one of them with an older row that asks the same
    assert max(times["train"]) <= min(times["val"]) and max(times["val"]) < "2024-02"


def test_rows_that_cannot_be_used_are_told_or_left_out_and_counted(
    base: Composed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw, data = raw_rows(tmp_path / "raw"), {"extra": ["grade", "when"]}
    (raw.parent / "pictures/4.PNG").write_bytes(b"no picture")
    with pytest.raises(Mistake, match=r"raw.jsonl:5: its `image` cannot be read"):
        prepared(base, raw, data)
    assert not (tmp_path / "set").exists()
    report = prepared(base, raw, {**data, "on_bad_row": "skip", "max_bad_share": 0.1})
    assert "raw.jsonl:5" in capfd.readouterr().out
    assert report["read"]["train"] == {"rows": 44, "bad": 1} and len(report["bad_rows"]) == 1
    assert "r4" not in sum(ids_of(tmp_path / "set").values(), [])


def test_tokens_are_those_that_the_model_will_see(cli: Cli, tmp_path: Path) -> None:
    raw = write_rows(tmp_path / "raw.jsonl", [row_of(f"r{k}", text, "answer" * k) for k, text in enumerate(TEXTS)])
    words = (f"data.path={raw}", "prepare.val_share=0", "prepare.test_share=0.25", "prepare.output=set")
    code, out, err = cli(*words, "model=chat", "llm=tiny")
    assert (code, err) == (0, "") and "supervised tokens" in out
    report = json.loads((tmp_path / "set/quality.json").read_text())
    # The byte tokenizer: a byte a token, an end of turn that is learnt, and a template that takes 20 more or so.
    answers = {f"r{k}": len("answer" * k) + 1 for k in range(4)}
    asked = {f"r{k}": len(text.encode()) for k, text in enumerate(TEXTS)}
    for split, ids in ids_of(tmp_path / "set").items():
        found = report["splits"][split]
        assert found["supervised"]["total"] == sum(answers[id] for id in ids)
        extra = found["tokens"]["total"] - sum(answers[id] + asked[id] for id in ids)
        assert extra == len(ids) * (extra // len(ids)) > 0
    assert report["languages"]["train"].keys() | report["languages"]["test"].keys() == {"vi", "en", "zh"}
    assert sum(one["rows"] for one in report["empty_answers"].values()) == 1


MISTAKES = {
    "prepare.group_by=grad": ({"group_by": "grad"}, "prepare.group_by=grad: no row has it; did you mean grade?"),
    "number": ({"stratify_by": "half"}, "must be a text or a whole number"),
    "time": ({"time_by": "label"}, "A time is a number in every row"),
    "lacking": ({"group_by": "image_of"}, "1 of 44 rows lack it, raw.jsonl:1 (id r0) for one"),
    "one group": ({"group_by": "all"}, "44 of them in the largest"),
    "full": ({"output": "full"}, "is not empty. Set prepare.overwrite=true"),
    "not ours": ({"output": "full", "overwrite": True}, "is no dataset that runner prepare wrote"),
    "source": ({"output": "raw", "overwrite": True}, "holds data.path"),
    "file": ({"output": "raw/raw.jsonl"}, "is a file"),
}


def test_what_is_asked_wrongly_is_told_and_nothing_is_written(base: Composed, tmp_path: Path) -> None:
    raw = raw_rows(tmp_path / "raw")
    rows = [{**line, "half": 0.5, "all": 1, "image_of": 1} for line in lines_of(raw)]
    del rows[0]["image_of"]
    write_rows(raw, rows)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    for asked, said in MISTAKES.values():
        with pytest.raises(Mistake) as told:
            prepared(base, raw, {"extra": ["grade", "when", "half", "all", "image_of"]}, duplicates="keep", **asked)
        assert said in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_that_cannot_be_together_are_told_at_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.combinations.find_spec", lambda name: None)
    asked = ("prepare.val_share=0.6", "prepare.test_share=0.4", "prepare.time_by=when", "prepare.stratify_by=label")
    code, _, err = cli("data.path=.", *asked, "prepare.item=copy")
    assert code == 2
    for said in (
        "prepare.output needs a value", "prepare.item: no such key; did you mean prepare.items?", "are both set",
        "leave no row to train on", "pip install 'multimodal-runner[prepare]', or set prepare.near_duplicates=null",
        "or set prepare.languages=false",
    ):  # fmt: skip
        assert said in err


def test_what_belongs_to_a_question_parts_rows_that_ask_in_the_same_words(base: Composed, tmp_path: Path) -> None:
    rows = [row_of(f"r{k}", "Which of these is it?", str(k), options=[k // 2, 7]) for k in range(20)]
    raw, data = write_rows(tmp_path / "raw.jsonl", rows), {"extra": ["options"]}
    with pytest.raises(Mistake, match="20 rows in 1 groups"):
        prepared(base, raw, data)
    report = prepared(base, raw, data, context=["options"])
    assert report["duplicates"]["same_question_other_answer"]["questions"] == 10
    pairs = [[int(id[1:]) // 2 for id in ids] for ids in ids_of(tmp_path / "set").values()]
    assert sorted(len(set(some)) for some in pairs) == [1, 1, 8]
    with pytest.raises(Mistake, match="prepare.context=option: no row has it; did you mean options?"):
        prepared(base, raw, data, context=["option"], overwrite=True)


def test_windows_of_a_series_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "series.csv"
    file.write_text("date,a\n" + "".join(f"{k},{k % 7}\n" for k in range(60)))
    words = ["data=csv_series", f"data.path={file}", "data.lookback=4", "data.horizon=2", "prepare.output=set"]
    with pytest.raises(Mistake, match="data.borders"):
        prepare(compose("prepare", words))
    assert not (tmp_path / "set").exists()


def killed_while_writing(output: Path) -> None:
    with placed(output) as folder:
        (folder / "train.jsonl").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_the_earlier_dataset_and_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with placed(tmp_path / "set") as folder:
        (folder / "train.jsonl").write_text("whole")
    for output in (tmp_path / "set", tmp_path / "new"):
        process = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(output,))
        process.start()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "set/train.jsonl").read_text() == "whole"
    assert not (tmp_path / "new").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir() if path.name != "set")
    with pytest.raises(ZeroDivisionError), placed(tmp_path / "set") as folder:
        (folder / "train.jsonl").write_text(str(1 // 0))
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(Fault, match="the disk is full"), placed(tmp_path / "set") as folder:
        (folder / "train.jsonl").write_text("new")
    assert (tmp_path / "set/train.jsonl").read_text() == "whole"
