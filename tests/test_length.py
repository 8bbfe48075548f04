"""Rows over length: what each policy leaves of them, item by item and token by token, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest

from runner.announce import describe, endless, loss_table
from runner.data.bad_rows import BadReport
from runner.data.chat import ChatFormat, Encoded, asks, prompt_of
from runner.data.cutting import part, piece_cuts, prompt_length
from runner.data.intake import Split
from runner.data.length import LengthPolicy, LengthReport
from runner.predictor import within_limits
from runner.protocols import IGNORED, Example, Message, Mistake, Row
from runner.settings import Data
from tests.chat_families import families, marked

FAMILIES = families()
POLICIES = get_args(get_type_hints(Data)["over_length"])


def of(report: LengthReport) -> Split:
    return Split([], report, BadReport(report.total, 0, []), "")


def chat(family: str = "tiny", learn: Literal["all", "last"] = "all") -> ChatFormat:
    return ChatFormat(FAMILIES[family], ("image",), "placeholder", learn, "into_user")


def row(*contents: str, id: str = "r1", system: str | None = None, images: int = 0) -> Row:
    messages = [Message("system", system)] if system is not None else []
    messages += [Message(("user", "assistant")[k % 2], content) for k, content in enumerate(contents)]
    return Row(id, "train.jsonl:1", tuple(messages), {"image": tuple(f"{k}.png" for k in range(images))})


def fitted(
    rows: Sequence[Row], max_length: int | None, policy: str, format: ChatFormat, max_prompt_length: int | None = None
) -> tuple[list[Example], LengthReport]:
    lengths = LengthPolicy(max_length, max_prompt_length, policy, format)
    kept = [one for each in rows for one in lengths.fit(format.example(each))]
    lengths.check()
    return kept, lengths.report()


TWO_TURNS = row("A long <image>question", "Yes", "And <image>another", "No", images=2)


def texts(examples: Sequence[Example]) -> list[str]:
    return [marked(FAMILIES["tiny"], one) for one in examples]


def test_rows_within_length_stay_as_they_are() -> None:
    format = chat()
    length = len(format.example(TWO_TURNS).input_ids)
    for policy in POLICIES:
        for limits in ((length, 18), (None, None)):
            kept, report = fitted([TWO_TURNS], limits[0], policy, format, limits[1])
            assert texts(kept) == texts([format.example(TWO_TURNS)]) and kept[0].row is TWO_TURNS
            assert report == LengthReport(total=1, kept=1, longest=39, longest_prompt=18) and report.is_whole
    assert describe(of(report)) == "1 rows, the longest 39 text tokens."
    assert loss_table({"train": report}) is None and list(endless({"train": report})) == []


def test_error_names_the_rows_and_both_limits() -> None:
    rows = [TWO_TURNS, *(row("A question", "Yes " * k, id=f"r{k}") for k in range(2, 9))]
    with pytest.raises(Mistake) as mistake:
        fitted(rows, 25, "error", chat(), 17)
    for said in (
        "7 rows of 8 longer than data.max_length=25 tokens: train.jsonl:1 (id r1, 39 tokens)", "and 2 more",
        "data.max_length=46", "data.over_length=drop", "truncate_prompt", "truncate)", "split)",
    ):  # fmt: skip
        assert said in str(mistake.value)
    with pytest.raises(Mistake) as mistake:
        fitted(rows, None, "error", chat(), 17)
    assert str(mistake.value).startswith(
        "1 row of 8 with a prompt longer than data.max_prompt_length=17 tokens: "
        "train.jsonl:1 (id r1, 18 tokens before its first learnt answer). Raise it (data.max_prompt_length=18)."
    )


def test_drop() -> None:
    kept, report = fitted([TWO_TURNS, row("Hi", "Yes")], 38, "drop", chat())
    assert texts(kept) == ["<|user|>Hi<|end|><|assistant|>⟦Yes<|end|>⟧"]
    assert report == LengthReport(
        2, 1, 39, 18, over=1, dropped=1, prompt_tokens_lost=32, answer_tokens_lost=7, items_lost=2
    )
    assert fitted([TWO_TURNS, row("Hi", "Yes")], None, "drop", chat(), 17)[1] == report
    with pytest.raises(Mistake, match="None of the 1 row is left by data.over_length=drop.*data.max_length=38"):
        fitted([TWO_TURNS], 38, "drop", chat())


SECOND = "<|user|>And {image 2}another<|end|><|assistant|>⟦No<|end|>⟧"


def test_truncate_prompt_cuts_user_texts_from_the_front() -> None:
    kept, report = fitted([TWO_TURNS], 29, "truncate_prompt", chat())
    assert texts(kept) == ["<|user|>{image 1}stion<|end|><|assistant|>⟦Yes<|end|>⟧" + SECOND]
    assert report == LengthReport(1, 1, 39, 18, over=1, truncated=1, prompt_tokens_lost=10)
    assert describe(of(report)).endswith("; 1 over length: 1 truncated.")
    # The prompt's own limit: the user texts before the first learnt answer alone.
    kept, report = fitted([TWO_TURNS], None, "truncate_prompt", chat(), 5)
    assert texts(kept) == ["<|user|>{image 1}on<|end|><|assistant|>⟦Yes<|end|>⟧" + SECOND]
    kept, report = fitted([TWO_TURNS], 18, "truncate_prompt", chat(), 5)
    assert texts(kept) == [
        "<|user|>{image 1}<|end|><|assistant|>⟦Yes<|end|>⟧<|user|>{image 2}other<|end|><|assistant|>⟦No<|end|>⟧"
    ]
    assert report == LengthReport(1, 1, 39, 18, over=1, truncated=1, prompt_tokens_lost=21)
    # What comes before the last answer is its prompt, where that alone is learnt.
    kept, report = fitted([TWO_TURNS], None, "truncate_prompt", chat(learn="last"), 20)
    assert report.longest_prompt == 36 and prompt_length(kept[0]) == 20
    assert texts(kept)[0].endswith("<|assistant|>Yes<|end|><|user|>nd {image 2}another<|end|><|assistant|>⟦No<|end|>⟧")


def test_truncate_cuts_the_end() -> None:
    kept, report = fitted([TWO_TURNS], 24, "truncate", chat())
    assert texts(kept) == ["<|user|>A long {image 1}question<|end|><|assistant|>⟦Yes<|end|>⟧<|user|>A"]
    assert kept[0].row.items == {"image": ("0.png",)} and kept[0].row.messages == TWO_TURNS.messages[:2]
    assert report == LengthReport(
        1, 1, 39, 18, over=1, truncated=1, prompt_tokens_lost=12, answer_tokens_lost=3, items_lost=1
    )
    # An item before the first token that is cut off goes with that token.
    kept, report = fitted([TWO_TURNS], 27, "truncate", chat())
    assert texts(kept)[0].endswith("<|user|>And ") and report.items_lost == 1
    # The prompt loses the end of its user texts; the answers stay behind it.
    kept, report = fitted([TWO_TURNS], None, "truncate", chat(), 8)
    assert texts(kept) == ["<|user|>A lon{image 1}<|end|><|assistant|>⟦Yes<|end|>⟧" + SECOND]


def test_rows_that_do_not_end_are_told() -> None:
    kept, report = fitted([TWO_TURNS, row("Hi", "Yes")], 20, "truncate", chat())
    assert texts(kept)[0].endswith("<|assistant|>⟦Ye⟧") and report.unended == 1
    (sentence,) = endless({"train": report})
    assert sentence.startswith("Data, train: 1 of 2 rows (50.0%) end in no end of turn that is learnt")
    assert list(endless({"train": LengthReport(200, 200, 9, 9, over=2, truncated=2, unended=2)})) == []
    assert len(list(endless({"train": LengthReport(200, 200, 9, 9, over=3, truncated=3, unended=3)}))) == 1
    title, columns, rows, right = loss_table({"train": report, "val": LengthReport(1, 1, 9, 9)})
    named = dict(zip(columns, rows[0], strict=True))
    assert len(rows) == 1 and named["split"] == "train" and set(right) == set(columns) - {"split"}
    assert (named["prompt tokens"], named["answer tokens"], named["items"]) == ("14", "5", "1")
    assert named["without end of turn"] == "1"


def test_split_at_the_borders_of_turns() -> None:
    kept, report = fitted([TWO_TURNS], 30, "split", chat())
    first, second = kept
    assert texts(kept) == [
        "<|user|>A long {image 1}question<|end|><|assistant|>⟦Yes<|end|>⟧",
        "<|user|>And {image 1}another<|end|><|assistant|>⟦No<|end|>⟧",
    ]
    assert [one.id for one in kept] == [one.row.id for one in kept] == ["r1#1", "r1#2"]
    assert [one.row.items["image"] for one in kept] == [("0.png",), ("1.png",)]
    assert [one.row.messages for one in kept] == [TWO_TURNS.messages[:2], TWO_TURNS.messages[2:]]
    assert report == LengthReport(1, 2, 39, 18, over=1, split=1)
    assert describe(of(report)).endswith("; 1 over length: 1 split into 2.")
    assert chat().truth(first.row) == "Yes" and texts([prompt_of(second)]) == [
        "<|user|>And {image 1}another<|end|><|assistant|>"
    ]
    # The white space between two turns stays with the first.
    kept, _ = fitted([row("One?", "Two.", "Three?", "Four.")], 25, "split", chat("chatml"))
    assert marked(FAMILIES["chatml"], kept[1]).startswith("<|im_start|>user\nThree?<|im_end|>")


def test_split_within_turns() -> None:
    # An answer gets what of its prompt fits before it; the rest has nothing to learn.
    kept, report = fitted([TWO_TURNS], 20, "split", chat())
    assert texts(kept)[0] == " long {image 1}question<|end|><|assistant|>⟦Yes<|end|>⟧"
    assert (report.kept, report.pieces_dropped, report.prompt_tokens_lost, report.answer_tokens_lost) == (2, 1, 2, 0)
    kept, report = fitted([TWO_TURNS], None, "split", chat(), 6)
    assert texts(kept) == [
        "tion<|end|><|assistant|>⟦Yes<|end|>⟧<|user|>And {image 1}another<|end|><|assistant|>⟦No<|end|>⟧"
    ]
    assert report.items_lost == 1 and kept[0].row.items == {"image": ("1.png",)}
    # A long answer goes on from piece to piece; the first token of a piece has nothing before it to be told from.
    long = row("Hi", "0123456789")
    kept, report = fitted([long], 8, "split", chat())
    assert texts(kept) == ["Hi<|end|><|assistant|>⟦0123⟧", "4⟦56789<|end|>⟧"]
    assert report == LengthReport(
        1, 2, 16, 5, over=1, split=1, pieces_dropped=1, prompt_tokens_lost=1, answer_tokens_lost=1, unended=1
    )
    assert [one.row.messages for one in kept] == [long.messages, long.messages[1:]]
    assert [asks(one) for one in kept] == [True, False]
    # Where the last answer alone is learnt, what was said before goes as far as it fits.
    kept, report = fitted([TWO_TURNS], 25, "split", chat(learn="last"))
    assert texts(kept) == ["<|user|>And {image 1}another<|end|><|assistant|>⟦No<|end|>⟧"] and report.split == 1


def test_cuts() -> None:
    learnt = np.array([False, False, True, True, True] * 3)
    assert piece_cuts(learnt, [5, 10], 10, None) == [0, 10, 15]
    assert piece_cuts(learnt, [5, 10], 9, None) == [0, 5, 10, 15]
    last = np.arange(15) >= 13
    assert piece_cuts(last, [5, 10], 10, None) == [0, 5, 15], "as many whole turns before the answer as fit"
    assert piece_cuts(last, [5, 10], 10, 6) == [0, 10, 15]
    # The end of a long answer alone, at the start of a piece, is not learnt: what comes next is the prompt of another.
    learnt = np.concatenate([np.repeat([False, True], run) for run in ((1, 20), (6, 2), (1, 1))])
    assert piece_cuts(learnt, [21, 29], 20, 5) == [0, 20, 22, 31]


def test_a_message_without_text_and_an_item_at_the_end_stay() -> None:
    kept, _ = fitted([row("", "Yes", "", "No")], 9, "split", chat())
    assert [one.row.messages for one in kept] == [row("", "Yes").messages, row("", "No").messages]
    blank = row("Hi", "0123456789", system=" ")
    assert fitted([blank], 12, "truncate", chat())[0][0].row.messages == blank.messages
    ids, asked = np.arange(4, dtype=np.int32), row("Hi", "Yes", "<image>", images=1)
    at_end = Example("r1", ids, np.array([IGNORED, 1, IGNORED, IGNORED], dtype=np.int32), (("image", 0, 4),), asked)
    encoded = Encoded(at_end, np.zeros(4, dtype=bool), ((0, 1), (1, 2), (2, 4)), (2,))
    everything = np.ones(4, dtype=bool)
    assert part(encoded, everything, 2, 4).places == (("image", 0, 2),)
    assert part(encoded, everything, 0, 3).places == ()


UNFIT = {
    "untaught": (row("Hi"), 100, "truncate", "1 row without an assistant's turn"),
    "an id like a piece's": (row("Hi", "Yes", id="a#2"), 100, "split", "1 row with an id that ends in # and a number"),
    "too little to cut": (row("Hi", "Yes"), 6, "truncate_prompt", "1 row cannot be cut to data.max_length=6"),
    "nothing left": (row("Hi", "Yes"), 5, "truncate", "None of the 1 row is left by data.over_length=truncate"),
    "one token": (row("Hi", "Yes"), 1, "split", "None of the 1 row is left by data.over_length=split"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_learnt_from_is_told_after_the_last_row(name: str) -> None:
    bad, limit, policy, said = UNFIT[name]
    lengths = LengthPolicy(limit, None, policy, chat())
    kept = lengths.fit(chat().example(bad))
    assert len(kept) == (name == "an id like a piece's")
    with pytest.raises(Mistake, match=said):
        lengths.check()


def test_a_prompt_that_cannot_be_cut() -> None:
    for policy in ("truncate_prompt", "truncate"):
        with pytest.raises(
            Mistake, match=r"data.max_prompt_length=2, as too few .*train.jsonl:1 \(id r1, 2 of 9 tokens\)"
        ):
            fitted([row("Hi", "Yes")], None, policy, chat(), 2)
    kept, _ = fitted([row("Hi", "Yes")], None, "split", chat(), 2)
    assert texts(kept) == ["<|end|><|assistant|>⟦Yes<|end|>⟧"]


CONVERSATION = ("A rather long question", "Yes", "And quite another <image> one", "No")


@pytest.mark.parametrize("learn", ["all", "last"])
@pytest.mark.parametrize("policy", ["truncate_prompt", "truncate"])
@pytest.mark.parametrize("turns", [1, 3])
def test_a_question_is_cut_as_with_its_answer(policy: str, learn: Literal["all", "last"], turns: int) -> None:
    """To every prompt limit that can be kept; and so it is refused where its row is refused in training."""
    format = chat(learn=learn)
    asked, answered = (row(*CONVERSATION[:count], images=turns // 2) for count in (turns, turns + 1))
    whole = prompt_length(format.example(answered))
    outcomes = set()
    for limit in range(1, whole + 2):
        limits = LengthPolicy(None, limit, policy, format)
        trained = limits.fit(format.example(answered))
        try:
            (left,) = within_limits([format.example(asked)], limits)
        except Mistake:
            assert trained == []
            outcomes.add("refused")
            continue
        left, expected = prompt_of(left), prompt_of(trained[0])
        assert left.input_ids.tolist() == expected.input_ids.tolist() and left.places == expected.places
        outcomes.add("cut" if len(left.input_ids) < len(format.example(asked).input_ids) else "whole")
    assert outcomes == {"refused", "cut", "whole"}


def test_a_question_makes_room_for_the_answer_that_its_row_has() -> None:
    format = chat()
    answered = format.example(row("A long question", "Yes"))
    length = len(answered.input_ids)
    for limit in (length, length - 1, length - 8):
        limits = LengthPolicy(limit, None, "truncate_prompt", format)
        assert texts(within_limits([answered], limits)) == texts(limits.fit(answered))
    with pytest.raises(Mistake, match=rf"\(id r1, {length} tokens with its answer\)"):
        within_limits([answered], LengthPolicy(6, None, "truncate_prompt", format))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("answer", [(), ("A long answer that nobody reads",)])
def test_a_question_over_length_is_cut_or_refused_and_never_lost(policy: str, answer: tuple[str, ...]) -> None:
    format = chat()
    fine, long = row("Hi", *answer, id="fine"), row("Hi, how are you?", *answer, id="long")
    prompt = len(prompt_of(format.example(fine)).input_ids)
    total = len(format.example(fine if policy == "truncate_prompt" else row("Hi")).input_ids)
    for limits in ((total, None), (None, prompt)):
        lengths = LengthPolicy(*limits, policy, format)
        if policy == "truncate_prompt" or (policy == "truncate" and limits[1]):
            left = within_limits([format.example(one) for one in (fine, long)], lengths)
            assert [len(prompt_of(one).input_ids) for one in left] == [prompt, prompt]
            continue
        with pytest.raises(Mistake) as told:
            within_limits([format.example(one) for one in (fine, long)], lengths)
        assert f"1 of 2 questions too long: train.jsonl:1 (id long, {prompt + 14} tokens)" in str(told.value)
        assert lengths.limits() in str(told.value) and f"data.over_length={policy}" in str(told.value)
