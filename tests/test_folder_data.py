"""Folders by class: every file becomes a row with its folder's name, or is told; the split hangs on names alone."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import unicodedata
import wave
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runner.cli import main
from runner.data.folder import Folder
from runner.protocols import Message, Mistake, Row

SOURCE: dict[str, Any] = {"modality": None, "val_share": 0.25, "split_seed": 0, "prompt": None}
TRAIN = ["model=classify", "data=folder", "tracker=none", "train.batch_size=16", "schedule.warmup_steps=2"]
PATCH = ["encoder/image=patch", *(f"encoder.image.{one}" for one in ("hidden_size=16", "layers=1", "heads=2"))]
COUNTER = itertools.count()


def read(root: Path, **changed: Any) -> dict[str, list[Row]]:
    return Folder(str(root), **(SOURCE | changed)).read(["image", "audio", "series"])


def ids(rows: Iterable[Row]) -> list[str]:
    return [row.id for row in rows]


def empty_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pictures(root: Path, classes: Iterable[str], each: int) -> Path:
    """The class says which part of a picture is bright."""
    chance = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = chance.integers(0, 60, (8, 8)).astype(np.uint8)
            pixels[:, 2 * k : 2 * k + 2] += 180
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def tone(file: Path, hertz: float, seconds: float = 0.1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(8000 * seconds)) / 8000)
    with wave.open(str(file), "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", ""))
        stream.writeframes((samples * 32767).astype("<i2").tobytes())


def test_pictures_are_trained_on_evaluated_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures", ["left_side", "the middle", "right"], 20)
    words = [*TRAIN, *PATCH, "data.path=pictures", "train.max_steps=40", "optimizer.lr=8e-3", "hydra.run.dir=run"]
    assert main(["train", *words]) == 0
    printed = capsys.readouterr().out
    assert "Data, train: 48 rows." in printed and "Data, val: 12 rows." in printed
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["classes"] == ["left_side", "right", "the middle"] and summary["last"]["val/accuracy"] == 1.0
    assert [sum(row) for row in summary["confusion"]] == [4, 4, 4]

    assert main(["evaluate", "run=run"]) == 0
    lines = [json.loads(line) for line in Path("run/evaluations/val.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == set(ids(read(tmp_path / "pictures", val_share=0.2)["val"]))
    assert {line["truth"] for line in lines[:8]} == set(summary["classes"])  # those that are shown are of all classes

    pictures(tmp_path / "new v1.5", ["left_side", "right"], 3)  # given anew, none was trained on: all are asked
    capsys.readouterr()
    assert main(["evaluate", "run=run", "data.path=new v1.5/../new v1.5/."]) == 0
    assert "Data, new v1.5: 6 rows." in capsys.readouterr().out
    assert Path("run/evaluations/new v1.5.json").is_file()

    assert main(["generate", "run=run", "image=new v1.5/left_side/0.png"]) == 0
    assert capsys.readouterr().out.startswith("left_side\n")


def test_sounds_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, each in (("train", 8), ("val", 2), ("test", 1)):
        for name, hertz in (("low", 300.0), ("high", 2000.0)):
            for k in range(each):
                tone(tmp_path / "sounds" / split / name / f"{k}.WAV", hertz + 10 * k)
    sizes = ["rate=8000", "window=256", "hop=80", "mel_bands=20", "hidden_size=16", "layers=1", "heads=2"]
    spectrogram = ["encoder/audio=spectrogram", *(f"encoder.audio.{size}" for size in sizes)]
    words = ["data.path=sounds", "train.max_steps=20", "optimizer.lr=0.01", "hydra.run.dir=run"]
    assert main(["train", *TRAIN, *spectrogram, *words]) == 0
    assert json.loads(Path("run/summary.json").read_text())["last"]["val/accuracy"] == 1.0
    assert main(["evaluate", "run=run", "evaluate.split=test"]) == 0
    printed = capsys.readouterr().out
    assert "Data, val: 4 rows." in printed and "Data, test: 2 rows." in printed


def test_series_are_trained_on(tmp_path: Path) -> None:
    for k, name in enumerate(("falling", "rising")):
        (tmp_path / "series" / name).mkdir(parents=True)
        for number in range(8):
            values = (2 * k - 1) * np.arange(12.0) + number
            np.save(tmp_path / "series" / name / f"{number}.npy", values)
            (tmp_path / "series" / name / f"{number}.csv").write_text("value\n" + "\n".join(map(str, values)))
    sizes = ["patch_length=4", "stride=4", "hidden_size=16", "layers=1", "heads=2"]
    encoder = ["encoder/series=series_patch", *(f"encoder.series.{size}" for size in sizes)]
    words = ["data.path=series", "train.max_steps=20", "optimizer.lr=0.01", "hydra.run.dir=run"]
    assert main(["train", *TRAIN, *encoder, *words]) == 0
    assert json.loads(Path("run/summary.json").read_text())["last"]["val/accuracy"] == 1.0


def test_real_photographs_in_folders(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in map(json.loads, (shared / "data" / "clothing" / "train.jsonl").read_text().splitlines()[:60]):
        (tmp_path / "clothes" / row["label"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(shared / "data" / "clothing" / row["image"], tmp_path / "clothes" / row["label"])
    size = ["encoder.image.size=16", "encoder.image.channels=3", "encoder.image.patch_size=8"]
    assert main(["train", *TRAIN, *PATCH, *size, "data.path=clothes", "train.max_steps=2", "hydra.run.dir=run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert len(summary["classes"]) == 10 and "t-shirt" in summary["classes"]
    assert summary["data"]["train"]["total"] + summary["data"]["val"]["total"] == 60


def test_a_language_model_learns_the_class_as_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures", ["left_side", "right"], 8)
    words = ["model=instruct", "data=folder", "data.path=pictures", "train.max_steps=1", "tracker=none", *PATCH]
    small = ["llm.hidden_size=32", "llm.intermediate_size=32", "llm.layers=1", "llm.heads=2", "fusion=interleave"]
    assert main(["train", *words, *small, "data.prompt=<image> Where, say?", "hydra.run.dir=run"]) == 0
    printed = capsys.readouterr().out
    assert "Where, say?" in printed and "left_side" in printed  # the held-out questions and what is due
    rows = read(tmp_path / "pictures", prompt="Where?")
    assert {row.messages for row in rows["val"]} == {
        (Message("user", "Where?"), Message("assistant", name)) for name in ("left_side", "right")
    }
    with pytest.raises(Mistake, match=r"data.prompt='<image> or <image>\?': the messages hold 2 <image>"):
        read(tmp_path / "pictures", prompt="<image> or <image>?")


def test_a_row_says_where_it_is_found(tmp_path: Path) -> None:
    root = empty_files(tmp_path / "pictures", "train/a_b/x.JPG", "train/ c/x.png", "val/a_b/x.tif", "README.md")
    splits = read(root)
    assert list(splits) == ["train", "val"]
    assert {(row.id, row.label) for row in splits["train"]} == {("train/a_b/x.JPG", "a_b"), ("train/ c/x.png", " c")}
    (row,) = splits["val"]
    assert row.where == str(root / "val/a_b/x.tif") and row.items == {"image": (root / "val/a_b/x.tif",)}
    assert not row.messages and not row.extra


def test_what_systems_leave_behind_is_passed_over(tmp_path: Path) -> None:
    left = [".DS_Store", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "__MACOSX/a/._1.jpg", ".cache/x/1.jpg"]
    root = empty_files(tmp_path, "a/1.jpg", "b/1.jpg", "a/.hidden.txt", ".ipynb_checkpoints/1.jpg", *left)
    assert sorted(ids(read(root, val_share=None)["train"])) == ["a/1.jpg", "b/1.jpg"]


def test_links_inside_are_followed(tmp_path: Path) -> None:
    root = empty_files(tmp_path / "pictures", "a/1.jpg", "b/1.jpg")
    (root / "a/2.jpg").symlink_to(root / "b/1.jpg")
    (root / "c").symlink_to("b")
    (tmp_path / "name").symlink_to(root)
    rows = read(tmp_path / "name", val_share=None)["train"]
    assert sorted(ids(rows)) == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg"]


def test_splits_of_ones_own_are_taken(tmp_path: Path) -> None:
    names = [f"train/{name}/{k}.jpg" for name in "ab" for k in range(4)]
    root = empty_files(tmp_path, *names, "test/a/1.jpg", "test/b/1.jpg")
    splits = read(root)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert list(splits) == ["train", "val", "test"]
    assert list(read(root, val_share=None)) == ["train", "test"]
    empty_files(root, "val/a/1.jpg")
    assert sorted(ids(read(root)["train"])) == sorted(names) and ids(read(root)["val"]) == ["val/a/1.jpg"]


def test_train_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    splits = read(empty_files(tmp_path, *(f"{name}/{k}.jpg" for name in ("bus", "train", "car") for k in range(4))))
    assert Counter(row.label for row in splits["val"]) == {"bus": 1, "train": 1, "car": 1}


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(2, 15), min_size=1, max_size=4), share=st.floats(0.01, 0.99), seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_split_is_stratified_and_of_the_names_alone(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], share: float, seed: int, order: random.Random
) -> None:
    names = [f"class {k}/{number}.jpg" for k, count in enumerate(counts) for number in range(count)]
    root = empty_files(tmp_path_factory.getbasetemp() / f"folder-{next(COUNTER)}", *names)
    splits = read(root, val_share=share, split_seed=seed)
    train, val = ids(splits["train"]), ids(splits["val"])
    assert sorted(train + val) == sorted(names)
    held_out = Counter(row.label for row in splits["val"])
    for k, count in enumerate(counts):
        assert abs(held_out[f"class {k}"] - share * count) <= 0.5 or held_out[f"class {k}"] in (1, count - 1)
        assert 1 <= held_out[f"class {k}"] <= count - 1

    order.shuffle(names)
    elsewhere = empty_files(tmp_path_factory.getbasetemp() / f"folder-{next(COUNTER)}", *names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", Shuffled(order, os.scandir))
        again = read(elsewhere, val_share=share, split_seed=seed)
    assert ids(again["train"]) == train and ids(again["val"]) == val

    empty_files(root, "class 0/one more.jpg")  # takes a place, and nothing else moves
    later = set(ids(read(root, val_share=share, split_seed=seed)["val"]))
    assert len(later - set(val)) <= 1 and len(set(val) - later) <= 1


class Shuffled:
    """`os.scandir` of a file system with another order."""

    def __init__(self, order: random.Random, scandir: Any) -> None:
        self.order, self.scandir = order, scandir
        self.entries: list[os.DirEntry[str]] = []

    def __call__(self, folder: Path) -> Shuffled:
        with self.scandir(folder) as entries:
            shuffled = Shuffled(self.order, self.scandir)
            shuffled.entries = list(entries)
        self.order.shuffle(shuffled.entries)
        return shuffled

    def __enter__(self) -> Any:
        return iter(self.entries)

    def __exit__(self, *_: object) -> None:
        pass


def test_another_seed_holds_out_other_files(tmp_path: Path) -> None:
    root = empty_files(tmp_path, *(f"a/{k}.jpg" for k in range(40)))
    assert len({frozenset(ids(read(root, split_seed=seed)["val"])) for seed in range(5)}) == 5


def test_the_split_is_the_same_on_any_day(tmp_path: Path) -> None:
    """Checkpoints and reports speak of it: a change here changes every run's rows."""
    root = empty_files(tmp_path, *(f"{name}/{k}.jpg" for name in "ab" for k in range(6)))
    assert ids(read(root)["val"]) == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/5.jpg"]


def test_a_class_of_one_file_is_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = read(empty_files(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg"))
    assert "1 class has a single file, which is trained on, and nothing to hold out: a." in caplog.text
    assert "a/1.jpg" in ids(splits["train"]) and [row.label for row in splits["val"]] == ["b"]
    with pytest.raises(Mistake, match="each class has one file, so none can be held out. Set data.val_share=null"):
        read(empty_files(tmp_path / "one", "a/1.jpg", "b/1.jpg"))


SEVERAL = ["a/1.jpg", "b/1.jpg"]
MISTAKES = {
    # name: (files, what is changed, what must be said)
    "no folder": (["1.jpg"], {}, "it holds no folder. Files stand in PATH/CLASS/FILE"),
    "foreign": (
        [*SEVERAL, "a/2.heic", "a/3.txt", "b/4.pdf", "b/5"],
        {},
        r"4 files are none of the pictures \(.jpg .* are read here: a/2.heic, a/3.txt, b/4.pdf and 1 more. Convert",
    ),
    "foreign to what is asked": (
        [*SEVERAL, "a/2.wav"],
        {"modality": "image"},
        "1 file is none of the pictures .*a/2.wav. Convert them, or move them away",
    ),
    "sounds to convert": (["a/1.wav", "a/2.mp3", "b/1.wav"], {}, "a/2.mp3. Convert them .ffmpeg -i FILE .* OUT.wav.,"),
    "mixed": (
        ["a/1.jpg", "a/1.json", "b/2.jpg"],
        {},
        r"it holds 2 pictures \(a/1.jpg, b/2.jpg\) and 1 series \(a/1.json\). Keep one kind",
    ),
    "nothing known": (["a/1.mp4"], {}, r"no folder of a class holds a file of a known kind \(a/1.mp4\). Known: pictur"),
    "nested": ([*SEVERAL, "b/c/1.jpg"], {}, "`b`, which would be a class, holds folders: c. Files stand in"),
    "nested below train": (
        ["train/a/1.jpg", "train/a/c/1.jpg"],
        {},
        "1 folder stands in the folder of a class: train/a/c. Move their files up",
    ),
    "wrapped": (["images/a/1.jpg", "images/b/1.jpg"], {}, r"Did you mean data.path=\S+/images\?"),
    "valid": (["train/a/1.jpg", "valid/a/1.jpg"], {}, "`valid` is none of train, val, test; did you mean val?"),
    "Train": (["Train/a/1.jpg", "val/a/1.jpg"], {}, "`Train` is none of train, val, test; did you mean train?"),
    "a fourth": (["train/a/1.jpg", "extra/a/1.jpg"], {}, "`extra` is none of train, val, test. Move it away"),
    "no train": (["val/a/1.jpg", "test/a/1.jpg"], {}, "there is test and val, and no train"),
    "no classes": (["train/1.jpg", "val/1.jpg"], {}, "there is no folder of a class in train, val"),
    "a test without classes": (["train/a/1.jpg", "test/1.jpg"], {}, "`test` holds no folder of a class"),
    "above the classes": ([*SEVERAL, "1.jpg", "list.csv"], {}, "1 file stands in no folder of a class: 1.jpg. Move"),
    "above in a split": (["train/a/1.jpg", "train/2.jpg"], {}, "1 file stands in no folder of a class: train/2.jpg"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(tmp_path: Path, name: str) -> None:
    files, changed, said = MISTAKES[name]
    with pytest.raises(Mistake, match=said) as told:
        read(empty_files(tmp_path / "pictures", *files), **changed)
    assert str(told.value).startswith(f"data.path={tmp_path / 'pictures'}: ") and str(told.value).endswith(".")


def test_empty_folders_are_named_with_what_else_is_wrong(tmp_path: Path) -> None:
    root = empty_files(tmp_path, "train/a/1.jpg", "train/b/.gitkeep", "train/a/1.doc", "val/c/Thumbs.db")
    with pytest.raises(Mistake) as told:
        read(root)
    assert "2 folders are empty: train/b, val/c. Fill or delete" in str(told.value) and "a/1.doc" in str(told.value)


def test_links_that_lead_outside_are_refused(tmp_path: Path) -> None:
    root = empty_files(tmp_path / "pictures", *SEVERAL)
    empty_files(tmp_path / "other", "1.jpg")
    for link, target, said in (
        ("a/2.jpg", tmp_path / "other/1.jpg", "a/2.jpg is a link that leads outside, to .*other/1.jpg. Put what it"),
        ("c", tmp_path / "other", "c is a link that leads outside, to .*other"),
        ("a/3.jpg", root / "nowhere", "a/3.jpg is a link that leads nowhere. Take it out"),
        ("a/4.jpg", root / "a/4.jpg", "a/4.jpg is a link that leads nowhere"),
    ):
        (root / link).symlink_to(target)
        with pytest.raises(Mistake, match=said):
            read(root)
        (root / link).unlink()
    os.mkfifo(root / "a/5.jpg")
    with pytest.raises(Mistake, match="a/5.jpg is neither a file nor a folder"):
        read(root)


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    root = empty_files(tmp_path, *SEVERAL)
    empty_files(root, f"a/{unicodedata.normalize('NFD', 'é')}.jpg")
    assert len(read(root, val_share=None)["train"]) == 3
    try:
        (root / "a" / os.fsdecode(b"\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system keeps names as text")
    with pytest.raises(Mistake, match="is not UTF-8. Rename it"):
        read(root)


def test_mistakes_come_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty_files(tmp_path / "pictures", *SEVERAL, "a/2.heic")
    (tmp_path / "rows.jsonl").touch()
    for words, said in (
        (["data.path=pictures"], ["data.path=pictures: 1 file is none of the pictures"]),
        (["data.path=rows.jsonl"], ["that is a file, and data=folder reads a folder. data=jsonl reads a file"]),
        (
            ["data.path=picture", "data.modality=images", "data.val_share=20"],
            ["(there is pictures)", 'data.modality: "images" is wrong', "data.val_share: 20 is wrong"],
        ),
    ):
        assert main(["train", *TRAIN, *PATCH, "train.max_steps=1", "hydra.run.dir=run", *words]) == 2
        told = capsys.readouterr().err
        assert all(one in told for one in said) and "Traceback" not in told
