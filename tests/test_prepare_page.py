"""docs/prepare.md: its script and its commands on real sets, as a reader would run them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from doc_commands import Command, Walk, commands, hold, run, script_of
from prepare_rows import ids_of, lines_of, read

from runner.config import compose
from runner.data.decode import decode
from runner.data.digits import Digits
from runner.prepare import prepare
from runner.preparing.content import folded
from runner.preparing.duplicates import jaccard, shingles

PAGE = Path(__file__).parents[1] / "docs" / "prepare.md"
COMMANDS = commands(PAGE)


@pytest.fixture(scope="module")
def walk(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The page's commands on the real sets, one after the other in one folder, each a process of its own."""
    folder = tmp_path_factory.mktemp("prepare_page")
    for name in ("gsm8k", "polymath_vi", "tsexam", "trimodal_animals"):
        (folder / name).symlink_to(shared / "data" / name)
    (folder / "stories260k").symlink_to(shared / "models/stories260k")
    (folder / "make_collection.py").write_text(script_of(PAGE, "make_collection.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Walk(folder, {command.text: run(command, {}) for command in COMMANDS})


@pytest.mark.zoo
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{k}" for k in range(len(COMMANDS))])
def test_a_command_of_the_page_prints_what_stands_there(walk: Walk, command: Command) -> None:
    hold(command, *walk.printed[command.text])


@pytest.mark.zoo
def test_the_real_sets_are_whole_and_no_question_is_in_two_splits(walk: Walk) -> None:
    came = {line["id"] for line in lines_of(walk.folder / "gsm8k/train.jsonl")}
    assert sorted(came) == sorted(id for ids in ids_of(walk.folder / "gsm8k_prepared").values() for id in ids)
    for name in ("gsm8k_prepared", "maths_prepared"):
        asked = {
            split: [line["messages"][0]["content"] for line in lines_of(walk.folder / name / f"{split}.jsonl")]
            for split in ("train", "val", "test")
        }
        for one, other in combinations(asked.values(), 2):
            for text in one[:40]:
                assert all(jaccard(shingles(folded(text)), shingles(folded(there))) < 0.8 for there in other)
    report = json.loads((walk.folder / "maths_prepared/quality.json").read_text())
    assert report["strata"]["rows"]["train"].keys() == {"5", "12"} and report["languages"]["train"] == {"vi": 88}


@pytest.mark.zoo
def test_the_digits_read_back_as_they_are(tmp_path: Path) -> None:
    prepare(compose("prepare", ["data=digits", "prepare.output=set"]))
    came = Digits(0.2).read(["image"])
    back = read(tmp_path / "set")
    assert {split: [row.id for row in rows] for split, rows in back.items()} == {
        split: [row.id for row in rows] for split, rows in came.items()
    }
    for split, rows in back.items():
        for one, other in zip(rows, came[split], strict=True):
            assert (one.messages, one.label) == (other.messages, other.label)
            assert decode("image", one.items["image"][0]) == decode("image", other.items["image"][0])
