"""A step's micro-batches as `runner show show.part=batch` tells and draws them, held against what training runs."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chat_runs import PICTURES, SHORT, write_rows
from doc_commands import commands, hold, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from runner.answering import bare_frame
from runner.build import build
from runner.cli import main
from runner.config import compose
from runner.data.length import LengthPolicy
from runner.feed import planned, streamed
from runner.models.byte_tokenizer import byte_tokenizer
from runner.models.instruct import Instruct
from runner.protocols import Message, Mistake, Row
from runner.show import read_step, show
from runner.showing.drawings import LARGEST, series, thumbnail, waveform
from runner.showing.glyphs import Glyphs, visible
from runner.showing.page import check_writable, page
from runner.showing.reading import Items, MicroBatch, Text
from runner.showing.wholes import Wholes
from runner.showing.words import content, head, header

SMALL = [
    "model=instruct", *SHORT, *PICTURES, "llm.hidden_size=32", "llm.intermediate_size=32", "llm.layers=1",
    "show.part=batch", "data.order=file", "train.max_steps=6",
]  # fmt: skip
USER, END, ASSISTANT = "<|user|>", "<|end|>", "<|assistant|>"
BYTES = byte_tokenizer()


def read(*words: str) -> list[MicroBatch]:
    composed = compose("show", [*SMALL, *words])
    return read_step(composed, build(composed, None, tracks=False), 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows")


def pieces(micro: MicroBatch, row: int) -> list[Any]:
    """Text of one kind as one, with the position of its first token."""
    merged: list[Any] = []
    for piece in micro.rows[row].pieces:
        last = merged[-1] if merged else None
        if (
            isinstance(piece, Text)
            and isinstance(last, Text)
            and (last.learnt, last.kind) == (piece.learnt, piece.kind)
        ):
            merged[-1] = replace(last, text=last.text + piece.text, ids=last.ids + piece.ids)
        else:
            merged.append(piece)
    return merged


def text(written: str, first: int, kind: Any, learnt: bool = False) -> Text:
    return Text(written, tuple(BYTES(written)["input_ids"]), first, learnt, kind)


def image(first: int, number: int = 0) -> Items:
    return Items((("image", number),), 16, 0, first)


@pytest.mark.parametrize("packing", [False, True])
def test_each_token_stands_where_the_language_model_reads_it(rows: Path, packing: bool) -> None:
    (micro,) = read(f"data.path={rows}", "train.batch_size=2", f"data.packing={packing}")
    assert pieces(micro, 1) == [
        text(USER, 0, "template"),
        image(1),
        text("Dark or light? Please.", 17, "user"),
        text(END + ASSISTANT, 39, "template"),
        text("l" + END, 41, "answer", learnt=True),
    ]
    assert [(row.id, row.first, row.last, row.tokens, row.learnt) for row in micro.rows] == [
        ("0", 0, 34, 35, 2),
        ("1", 0, 42, 43, 2),
    ]
    assert [row.padding for row in micro.rows] == ([0, 0] if packing else [8, 0])
    assert (micro.tokens, micro.learnt, micro.longest, micro.counts) == (78, 4, 78 if packing else 43, {"loss": 4.0})
    assert micro.efficiency == pytest.approx(1 if packing else 78 / 86)
    assert content(micro.rows[1]).plain == f"{USER}[image 1: 16 tokens]Dark or light? Please.{END}{ASSISTANT}⟦l{END}⟧"


@pytest.mark.zoo
def test_items_padding_and_fusions_that_make_other_tokens_of_them(tmp_path: Path) -> None:
    wave, long = [float(k % 5) for k in range(16)], [float(k % 3) for k in range(40)]
    lines = [
        {"id": "a", "series": [wave], "image": "0.png", "messages": said("<series> and <image>?", "x")},
        {"id": "b", "series": [long], "messages": said("<series>", "y")},
        {"id": "c", "messages": said("nothing", "z")},
    ]
    folder = write_rows(tmp_path / "rows")
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [f"data.path={folder}", "encoder/series=series_patch", "train.batch_size=3"]
    (micro,) = read(*words, "fusion=interleave")
    user, one, between, two, *_ = pieces(micro, 0)
    (padded,) = (piece for piece in pieces(micro, 1) if isinstance(piece, Items))
    assert padded.padding == 0 and one.padding == padded.tokens - one.tokens > 0  # [N, T] has the longest one's T
    assert (one.names, two) == ((("series", 0),), image(1 + one.tokens + len(" and ")))
    assert between.first == 1 + one.tokens and sum(row.tokens + row.padding for row in micro.rows) + one.padding == (
        3 * micro.longest
    )
    (packed,) = read(*words, "fusion=interleave", "data.packing=true")
    assert packed.padding == 0 and packed.tokens == micro.tokens
    assert [piece for piece in pieces(packed, 0) if isinstance(piece, Items)] == [replace(one, padding=0), two]

    (front,) = read(*words, "fusion=prefix")
    assert [piece for piece in pieces(front, 0) if isinstance(piece, Items)] == [image(1), replace(one, first=17)]

    (joint,) = read(*words, "fusion=perceiver", "fusion.tokens=5")
    together = Items((("image", 0), ("series", 0)), 5, 0, 1)
    assert [piece for piece in pieces(joint, 0) if isinstance(piece, Items)] == [together]
    (beside,) = read(*words, "fusion=cross_attention", "fusion.every=1", "fusion.heads=2")
    chips = [piece for piece in pieces(beside, 0) if isinstance(piece, Items)]
    assert [(chip.names[0][0], chip.tokens, chip.padding) for chip in chips] == [("series", 0, 0), ("image", 0, 0)]
    assert "[series 1: beside the text]" in content(beside.rows[0]).plain


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class OneProcess:
    """As much of a session as a step's micro-batches need where they are loaded in its own process."""

    def __init__(self, parts: Any, step: int) -> None:
        self.parts = parts
        self.progress = SimpleNamespace(step=step, cursor=None)
        self.total_steps = step + 1
        self.peers = SimpleNamespace(rank=0)
        self.run = SimpleNamespace(lock=None)
        self.accelerator = SimpleNamespace(device=SimpleNamespace(type="cpu"))


@pytest.mark.parametrize(
    "words",
    [
        ("data.order=shuffled", "train.micro_batch_size=2"),
        ("data.order=grouped", "data.packing=true", "train.micro_batch_tokens=60"),
        ("data.order=shuffled", "data.streaming=true", "data.buffer=3"),
    ],
)
def test_the_micro_batches_are_those_that_training_is_fed(rows: Path, words: tuple[str, ...]) -> None:
    composed = compose("show", [*SMALL, f"data.path={rows}", "train.batch_size=4", *words])
    parts = build(composed, None, tracks=False)
    stream = parts.splits["train"].stream
    for number in (0, 3):  # the second is in another pass over the rows
        session: Any = OneProcess(parts, 0 if stream else number)
        steps = streamed(session, stream) if stream else planned(session)
        fed = next(islice(steps, number if stream else 0, None)).micro_batches
        found = read_step(composed, parts, number)
        assert [[row.id for row in micro.rows] for micro in found] == [batch.ids for batch in fed]
        assert [micro.counts for micro in found] == [parts.objective.counts(batch) for batch in fed]
    assert len({tuple(row.id for row in micro.rows) for micro in found}) == len(found)

    if not stream:
        two = replace(parts.settings.cluster, num_processes=2)
        both = replace(parts, settings=replace(parts.settings, cluster=two), dealer=replace(parts.dealer, processes=2))
        shared = read_step(composed, both, 3)
        ids = sorted(row.id for micro in shared for row in micro.rows if row.weight)
        assert ids == sorted(id for batch in fed for id in batch.ids) and {one.process for one in shared} == {0, 1}


def long_rows(folder: Path) -> Path:
    """One of four turns with a picture in the third, and a short one."""
    write_rows(folder)
    turns = said("q" * 30, "a" * 10) + said("<image>" + "Q" * 20, "A" * 40)
    lines = [{"id": "long", "image": "0.png", "messages": turns}, {"id": "short", "messages": said("q", "a")}]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def told(micro: MicroBatch, id: str) -> tuple[str, dict[str, int], int, int]:
    (row,) = (row for row in micro.rows if row.id == id)
    assert row.whole is not None
    return content(row).plain, dict(row.whole.lost), row.whole.elsewhere, row.whole.unlearnt


def test_what_a_row_lost_to_its_length_is_told_where_it_was(tmp_path: Path) -> None:
    words = [f"data.path={long_rows(tmp_path / 'rows')}", "train.batch_size=8", "fusion=interleave"]
    front = USER + "q" * 30 + END + ASSISTANT + "⟦" + "a" * 10 + END + "⟧"
    (micro,) = read(*words, "data.max_length=50", "data.over_length=truncate", "data.packing=true")
    shown = front + USER + "[image 1: 16 tokens]" + "Q" * 5 + "[✂ 58 tokens]"
    assert told(micro, "long") == (shown, {"user": 15, "template": 2, "answer": 41}, 0, 0)
    assert told(micro, "short") == (f"{USER}q{END}{ASSISTANT}⟦a{END}⟧", {}, 0, 0)

    (micro,) = read(*words, "data.max_length=44", "data.over_length=truncate", "data.packing=true")
    assert told(micro, "long")[1] == {"user": 20, "template": 3, "answer": 41, "item": 1}

    (micro,) = read(*words, "data.max_length=100", "data.over_length=truncate_prompt", "data.packing=true")
    shown = f"{USER}[✂ 8 tokens]{'q' * 22}{END}{ASSISTANT}⟦{'a' * 10}{END}⟧{USER}[image 1: 16 tokens]"
    assert told(micro, "long")[0].startswith(shown) and told(micro, "long")[1] == {"user": 8}

    (micro,) = read(*words, "data.max_length=50", "data.over_length=split", "data.packing=true")
    first, second, third = (told(micro, f"long#{number}") for number in (1, 2, 3))
    assert first == (front + "[✂ 64 tokens]", {}, 64, 0)
    assert second == (f"[✂ 44 tokens]{USER}[image 1: 16 tokens]{'Q' * 20}{END}{ASSISTANT}⟦{'A' * 27}⟧[✂ 14 tokens]", {},
                      58, 0)  # fmt: skip
    assert third == (f"[✂ 94 tokens]A⟦{'A' * 12}{END}⟧", {}, 94, 1)


def test_a_mended_row_is_no_other_row_of_the_source(tmp_path: Path) -> None:
    """The source is read again for rows that were cut; one that has changed meanwhile is told."""
    folder = long_rows(tmp_path / "rows")
    words = [f"data.path={folder}", "train.batch_size=8", "data.max_length=50", "data.over_length=truncate"]
    composed = compose("show", [*SMALL, *words])
    parts = build(composed, None, tracks=False)
    file = folder / "train.jsonl"
    file.write_text(file.read_text().replace("qqq", "rrr"))
    with pytest.raises(Mistake, match=r"train.jsonl:\d \(id (long|short)\) has other tokens than when the rows"):
        read_step(composed, parts, 0)


TURNS = st.lists(st.text("ab é", min_size=1, max_size=30), min_size=2, max_size=6).map(
    lambda texts: tuple(
        Message(("user", "assistant")[k % 2], one.strip() or "x") for k, one in enumerate(texts[: len(texts) // 2 * 2])
    )
)


@settings(max_examples=50)
@given(TURNS, st.integers(8, 60), st.sampled_from([None, 8, 20]), st.sampled_from(["truncate", "split"]))
def test_every_token_of_a_row_is_here_elsewhere_or_lost(turns: Any, limit: int, prompt: Any, policy: Any) -> None:
    wholes, chat = cutting_chat()
    wholes.limits, wholes.given = (limit, prompt), replace(wholes.given, over_length=policy)
    wholes.cuts = True
    row = Row("r", "train.jsonl:1", turns)
    example = chat.example(row)
    learnt, learnt_left = int((example.labels != -100).sum()), 0
    left = LengthPolicy(limit, prompt, policy, chat).fit(example)
    for one in left:
        whole = wholes.whole(row, one.id, one.input_ids)
        assert np.array_equal(example.input_ids[whole.kept], one.input_ids)
        assert len(whole.kept) + whole.elsewhere + sum(whole.lost.values()) == len(whole.kinds) == len(example.labels)
        learnt_left += int((one.labels != -100).sum()) + whole.unlearnt
    if left:
        assert learnt - learnt_left == whole.lost.get("answer", 0)


@cache
def cutting_chat() -> tuple[Wholes, Any]:
    composed = compose("show", ["model=chat", "data=digits", "train.max_steps=1"])
    chat = bare_frame(composed).chat
    return Wholes(composed, chat, ()), chat


@given(st.text(max_size=30))
def test_what_is_shown_of_bytes_is_the_text(written: str) -> None:
    ids = BYTES(written, add_special_tokens=False)["input_ids"]
    found = Glyphs(BYTES).split(ids, [])
    assert [piece for piece, _ in found] == list(written) and [id for _, some in found for id in some] == ids


@given(st.text("aé€🚀 \ufffdk", max_size=12))
def test_what_is_shown_of_tokens_is_the_text(written: str) -> None:
    for tokenizer in published():
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        found = Glyphs(tokenizer).split(ids, [])
        assert [id for _, some in found for id in some] == ids
        assert "".join(piece for piece, _ in found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@cache
def published() -> list[PreTrainedTokenizerBase]:
    from conftest import SHARED

    if SHARED is None:
        pytest.skip("set RUNNER_TEST_DATA to a folder with data/ and models/")
    return [AutoTokenizer.from_pretrained(SHARED / "models" / name) for name in ("tokenizer_gpt2", "stories260k")]


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert visible("\x1b[31m\x00\x7f\u202eab\tc\n") == "␛[31m␀␡⟨U+202E⟩ab\tc\n"


class Page(HTMLParser):
    """What a browser makes of a page: elements that are open, attributes, and what stands in tokens."""

    VOID = ("meta", "img", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "i":
            self.tokens.append(("", dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "i":
            self.tokens[-1] = (self.tokens[-1][0] + data, self.tokens[-1][1])


def test_a_page_shows_a_rows_text_and_never_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = '</i></div><script>alert(1)</script>{{ 7*7 }}" onmouseover="alert(2)"<img src=x onerror=\'alert(3)\'>'
    name = "<b onclick='alert(4)'>\"x\"</b>"
    folder = write_rows(tmp_path / "rows")
    lines = [
        {"id": name, "image": "0.png", "messages": said(evil + " é€🚀", evil)},
        {"id": "short", "messages": said("q", "a")},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = tmp_path / "a page, with=signs (1).html"
    assert main(["show", *SMALL, f"data.path={folder}", "train.batch_size=2", f"show.html={file}"]) == 0
    assert capsys.readouterr().out.endswith(f"Page: {file}\n")
    shown_page = Page(file.read_text(encoding="utf-8"))
    assert shown_page.open == [] and not {tag for tag, _ in shown_page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "form",
    }
    assert all(not key.startswith("on") and key != "href" for _, attributes in shown_page.tags for key in attributes)
    (picture,) = (attributes for tag, attributes in shown_page.tags if tag == "img")
    with Image.open(io.BytesIO(base64.b64decode((picture["src"] or "").removeprefix("data:image/png;base64,")))) as one:
        assert one.size == (8, 8)
    assert picture["width"] == "64"
    whole = "".join(shown_page.text)
    assert name in whole and "image 1: 16 tokens" in whole and "positions 1 to 16" in whole

    legend = 4
    tokens = shown_page.tokens[legend:]
    (micro,) = read(f"data.path={folder}", "train.batch_size=2")
    shown = [piece for row in micro.rows for piece in row.pieces if isinstance(piece, Text)]
    assert [text for text, _ in tokens] == [piece.text for piece in shown]
    assert ["learnt" in (attributes["class"] or "").split() for _, attributes in tokens] == [
        one.learnt for one in shown
    ]
    written = "".join(text for text, _ in tokens)
    assert written.startswith(f"{USER}{evil} é€🚀{END}{ASSISTANT}{evil}{END}{USER}q{END}")
    (rocket,) = (attributes for text, attributes in tokens if text == "🚀")
    at = 17 + len((evil + " é€").encode())
    assert rocket["title"] == f"positions {at} to {at + 3} · ids 240, 159, 154, 128 · no label · user"
    padding = micro.rows[1].padding
    assert f"{padding} padding" in whole and padding == micro.longest - 6

    assert check_writable(str(file)) == file  # a page of ours may be written anew


def test_a_page_has_pack_borders_cuts_and_strips_that_add_up(tmp_path: Path) -> None:
    words = [f"data.path={long_rows(tmp_path / 'rows')}", "train.batch_size=8", "data.max_length=50"]
    words += ["data.over_length=split", "data.packing=true", "fusion=interleave", "show.html=page.html"]
    figures = show(compose("show", [*SMALL, *words]))["micro_batches"][0]
    assert figures["rows"] == ["long#1", "long#2", "long#3", "short"] and figures["padding"] == 0
    shown_page = Page(Path("page.html").read_text(encoding="utf-8"))
    sections = [attributes["class"] for tag, attributes in shown_page.tags if tag == "section"]
    assert sections == ["card packed"] and [tag for tag, _ in shown_page.tags].count("article") == 4
    whole = "".join(shown_page.text)
    for sentence in ("a piece: 44 of 108 text tokens, 64 in other pieces", "✂ 94 tokens", "positions 0 to 65"):
        assert sentence in whole
    assert "1 token of an answer read, not learnt" in whole
    widths = [
        float(one)
        for one in re.findall(r'class="(?!before)\w+" style="width:([\d.]+)%"', Path("page.html").read_text())
    ]
    assert sum(widths) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show.html=page.html", "show.part=rows"], "show.html=page.html is of a batch. Set show.part=batch"),
        (["show.html=/proc/page.html"], "show.html=/proc/page.html cannot be written"),
        (["show.step=6"], "show.step=6: the run has 6 steps, 0 to 5. Set one of them."),
    ],
)
def test_a_mistake_is_told(rows: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert main(["show", *SMALL, "data.path=rows", *words]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and "Traceback" not in printed.err and not Path("page.html").exists()


def test_another_file_is_not_written_over(rows: Path) -> None:
    with pytest.raises(Mistake, match="show.html=nowhere/page.html: there is no folder nowhere. Make it"):
        check_writable("nowhere/page.html")
    with pytest.raises(Mistake, match="show.html=rows is a folder. Name a file in it, rows/batch.html for instance"):
        check_writable("rows")
    with pytest.raises(Mistake, match="show.html=rows/0.png is there and no page of runner show. Name another file"):
        check_writable("rows/0.png")
    with pytest.raises(Mistake, match="show.html=rows/0.png/page.html: there is no folder rows/0.png"):
        check_writable("rows/0.png/page.html")


def test_an_objective_that_does_not_say_what_it_reads_is_named(
    rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Instruct, "reads")
    assert main(["show", *SMALL, f"data.path={rows}"]) == 2
    assert "Instruct does not say what its language model reads" in capsys.readouterr().err


def test_rows_without_a_language_model_are_shown_with_what_is_due(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["tracker=none", "train.max_steps=2", "show.part=batch", "train.batch_size=3", "data.order=file"]
    folder = write_rows(tmp_path / "rows")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()[:3]]
    labelled = [
        {"id": row["id"], "image": row["image"], "label": "<i>a</i>" if k else "b"} for k, row in enumerate(rows)
    ]
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    words = ["model=classify", "data=jsonl", f"data.path={folder}", "encoder/image=patch", *PICTURES, *common]
    words += ["model.class_weights=balanced", "checkpoint.monitor=val/loss", "checkpoint.mode=min"]
    composed = compose("show", words)
    (micro,) = read_step(composed, build(composed, None, tracks=False), 0)
    assert head(micro, 1) == "Micro-batch 1: 3 rows; loss counts 3."
    assert [header(row) for row in micro.rows[:2]] == [
        "id 0, train.jsonl:1: loss counts 1.5",
        "id 1, train.jsonl:2: loss counts 0.75",
    ]
    assert [content(row).plain for row in micro.rows[:2]] == ["[image 1] ⟦b⟧", "[image 1] ⟦<i>a</i>⟧"]
    shown = Page(page("title", [micro], 1))
    assert shown.open == [] and shown.tokens == [] and [tag for tag, _ in shown.tags].count("img") == 3
    assert shown.text.count("<i>a</i>") == 2

    lines = ["time,a,b", *(f"{k},{k % 7},{k % 3 if k % 4 else ''}" for k in range(60))]
    (tmp_path / "series.csv").write_text("\n".join(lines))
    words = ["model=regress", "data=csv_series", "data.path=series.csv", "data.time=time", "data.lookback=8",
             "data.horizon=4", "data.missing=keep", "encoder/series=series_patch"]  # fmt: skip
    assert main(["show", *words, *common, "show.html=page.html"]) == 0
    capsys.readouterr()
    drawn = Page(Path("page.html").read_text(encoding="utf-8"))
    curves = [attributes["d"] or "" for tag, attributes in drawn.tags if tag == "path"]
    assert len(curves) == 3 * (2 + 2) and [curve.count("M") for curve in curves[:4]] == [1, 2, 1, 1]


def test_items_are_drawn_small() -> None:
    drawn = thumbnail(Image.new("RGB", (640, 320)))
    assert drawn.size == (160, 80) and drawn.told == "640 x 320 pixels"
    sound = waveform(np.array([[0.0, 0.5, -1.0, 0.0]], dtype=np.float32), 8000)
    assert sound.curves[0].path == "M0 16L53.3 8L106.7 32L160 16L160 16L106.7 32L53.3 8L0 16Z"
    values = np.array([[1, 2, np.nan, 3, np.nan, np.nan, 5, 4], [np.nan] * 8, [2.0] * 8], dtype=np.float32)
    curves = series(values, ("a", "b")).curves
    assert [curve.path.count("M") for curve in curves] == [3, 0, 1] and curves[0].path.count("h0.1") == 1
    assert [(curve.name, curve.told) for curve in curves[:2]] == [("a", "1 to 5"), ("b", "nothing there")]
    long = series(np.arange(100_000, dtype=np.float32)[None], ())
    assert long.curves[0].path.count("L") == LARGEST - 1


@pytest.mark.zoo
def test_the_commands_of_the_page_print_what_stands_there() -> None:
    found = commands(Path(__file__).resolve().parents[1] / "docs" / "show.md")
    assert len(found) > 2
    for command in found:
        code, printed = run(command, {})
        hold(command, code, printed)
