"""What becomes of rows that are longer than the model may read: data.over_length, row by row, counted and told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from runner.data.chat import ChatFormat
from runner.data.cutting import cut_at_end, pieces, prompt_length, without_user_text
from runner.protocols import IGNORED, Example, Mistake

NAMED = 5
"""Rows that a message names."""
REMEDIES = (
    "Or leave such rows out (data.over_length=drop), cut their user texts from the front (truncate_prompt), cut off "
    "their end (truncate), or make several rows of each (split)."
)


@dataclass(frozen=True)
class LengthReport:
    """Counts. Tokens and items are lost by rows that were dropped, too."""

    total: int
    """Rows"""
    kept: int
    """Examples that rows became; more than rows where some were split."""
    longest: int
    """Text tokens of the longest row, before anything was done."""
    longest_prompt: int
    """The most text tokens before a row's first learnt answer, before anything was done."""
    over: int = 0
    """Rows longer than data.max_length, or with a prompt longer than data.max_prompt_length."""
    dropped: int = 0
    """Rows of which nothing is left."""
    truncated: int = 0
    """Rows that lost tokens and stayed one row."""
    split: int = 0
    """Rows that became pieces."""
    pieces_dropped: int = 0
    """Pieces without anything to learn, of rows of which others are left."""
    prompt_tokens_lost: int = 0
    """Text tokens that were not to be learnt."""
    answer_tokens_lost: int = 0
    """Text tokens that were to be learnt."""
    items_lost: int = 0
    unended: int = 0
    """Examples whose last learnt token is not the end of a turn."""

    @property
    def is_whole(self) -> bool:
        """Nothing was lost or taken apart."""
        return not (self.dropped or self.truncated or self.split)


@dataclass
class Told:
    """Rows that a message names: all counted, the first few by name."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, example: Example, what: str) -> None:
        self.count += 1
        if len(self.names) < NAMED:
            self.names.append(f"{example.row.where} (id {example.id}, {what})")

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return ", ".join(self.names) + (f" and {more:,} more" if more else "")


class LengthPolicy:
    """One for each split of one reading: `fit` each example as it comes, `check` after the last, then `report`.

    Memory: counts and the first few names, whatever the number of rows. A limit of None is none.
    """

    def __init__(
        self,
        max_length: int | None,
        max_prompt_length: int | None,
        over_length: Literal["error", "drop", "truncate_prompt", "truncate", "split"],
        chat: ChatFormat,
    ) -> None:
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.over_length = over_length
        self.chat = chat
        self.counts: Counter[str] = Counter(total=0, kept=0)
        self.longest = self.longest_prompt = 0
        self.untaught, self.over, self.over_prompt = Told(), Told(), Told()
        self.stubborn, self.numbered = Told(), Told()

    def fit(self, example: Example) -> list[Example]:
        """What becomes of it: none, one or several. What is wrong with it is kept for `check`."""
        length, prompt = len(example.input_ids), prompt_length(example)
        self.counts["total"] += 1
        if prompt == length:
            self.untaught.add(example, f"{length} tokens")
            return []
        self.longest, self.longest_prompt = max(self.longest, length), max(self.longest_prompt, prompt)
        if self.over_length == "split" and re.search(r"#\d+$", example.id):
            self.numbered.add(example, f"{length} tokens")
        left = [example]
        if self.max_length and length > self.max_length:
            self.over.add(example, f"{length} tokens")
            left = self.cut(example)
        elif self.max_prompt_length and prompt > self.max_prompt_length:
            self.over_prompt.add(example, f"{prompt} tokens before its first learnt answer")
            left = self.cut(example)
        self.counts["kept"] += len(left)
        self.counts["unended"] += sum(not self.ends(one) for one in left)
        return left

    def cut(self, example: Example) -> list[Example]:
        """What is left of one that is too long, counted."""
        left: list[Example] = []
        unmasked = 0  # tokens that are still read and no longer learnt: the first of a piece has nothing before it
        if self.over_length in ("truncate_prompt", "truncate"):
            encoded = self.chat.encode(example.row)
            cut = without_user_text if self.over_length == "truncate_prompt" else cut_at_end
            one = cut(encoded, self.max_length, self.max_prompt_length)
            if one is None:
                self.stubborn.add(example, f"{int(encoded.asked.sum())} of {len(example.input_ids)} tokens")
                return []
            left = [one] if is_learnt(one) else []
            self.counts["truncated"] += len(left)
        elif self.over_length == "split":
            encoded = self.chat.encode(example.row)
            starts = 0
            for piece in pieces(encoded, self.max_length, self.max_prompt_length):
                if is_learnt(piece):
                    left.append(numbered(piece, len(left) + 1))
                    unmasked += int(example.labels[starts] != IGNORED)
                else:
                    self.counts["pieces_dropped"] += 1
                starts += len(piece.input_ids)
            self.counts["split"] += bool(left)
        self.counts["dropped"] += not left
        learnt = int((example.labels != IGNORED).sum())
        learnt_left = sum(int((one.labels != IGNORED).sum()) for one in left)
        tokens_lost = len(example.input_ids) - sum(len(one.input_ids) for one in left)
        self.counts["answer_tokens_lost"] += learnt - learnt_left
        self.counts["prompt_tokens_lost"] += tokens_lost - (learnt - learnt_left - unmasked)
        self.counts["items_lost"] += len(example.places) - sum(len(one.places) for one in left)
        return left

    def ends(self, example: Example) -> bool:
        """Whether its last learnt token ends a turn."""
        learnt = example.labels[example.labels != IGNORED]
        return bool(learnt[-1] == self.chat.end_of_turn)

    def report(self) -> LengthReport:
        over = self.over.count + self.over_prompt.count
        return LengthReport(longest=self.longest, longest_prompt=self.longest_prompt, over=over, **self.counts)

    def check(self) -> None:
        """Raises `Mistake` for what cannot be learnt from, and for rows over length that may not be lost in silence."""
        total = self.counts["total"]
        if self.untaught.count:
            raise Mistake(
                f"{rows(self.untaught.count)} without an assistant's turn, so there is nothing to learn from: "
                f"{self.untaught}. Give each an answer or take it out."
            )
        if self.numbered.count:
            raise Mistake(
                f"{rows(self.numbered.count)} with an id that ends in # and a number, as the pieces of a row do: "
                f"{self.numbered}. Give them other ids, or set another data.over_length than split."
            )
        if self.over_length == "error" and (self.over.count or self.over_prompt.count):
            raise Mistake(f"{self.too_long(total)} {REMEDIES}")
        if self.stubborn.count:
            raise Mistake(
                f"{rows(self.stubborn.count)} cannot be cut to {self.limits()}, as too few tokens are a user's: "
                f"{self.stubborn}. Raise it, drop such rows (data.over_length=drop), or split them "
                "(data.over_length=split)."
            )
        if total and not self.counts["kept"]:
            raise Mistake(
                f"None of the {rows(total)} is left by data.over_length={self.over_length}: all are over "
                f"{self.limits()}. The longest has {self.longest} tokens, {self.longest_prompt} the most before an "
                "answer; raise it."
            )

    def too_long(self, total: int) -> str:
        said = []
        if self.over.count:
            said.append(
                f"{rows(self.over.count)} of {total:,} longer than data.max_length={self.max_length} tokens: "
                f"{self.over}. Raise it (data.max_length={self.longest}, if the language model takes that many)."
            )
        if self.over_prompt.count:
            said.append(
                f"{rows(self.over_prompt.count)} of {total:,} with a prompt longer than data.max_prompt_length="
                f"{self.max_prompt_length} tokens: {self.over_prompt}. Raise it "
                f"(data.max_prompt_length={self.longest_prompt})."
            )
        return " ".join(said)

    def limits(self) -> str:
        given = {"data.max_length": self.max_length, "data.max_prompt_length": self.max_prompt_length}
        return " and ".join(f"{name}={limit}" for name, limit in given.items() if limit)


def is_learnt(example: Example) -> bool:
    """Whether there is anything to learn in it."""
    return bool((example.labels != IGNORED).any())


def numbered(piece: Example, number: int) -> Example:
    """`id#1` and so on: the pieces that are kept, in their order."""
    name = f"{piece.id}#{number}"
    return replace(piece, id=name, row=replace(piece.row, id=name))


def check_answers_fit(
    prompts: Sequence[Example], answer: int | None, takes: int | None, in_training: bool = True
) -> None:
    """Raises `Mistake` when a prompt's text and an answer to it are more tokens than the language model takes."""
    setting = "model.max_new_tokens" if in_training else "max_new_tokens"
    longest = max(prompts, key=lambda one: len(one.input_ids), default=None)
    if longest is not None and answer and takes and len(longest.input_ids) + answer > takes:
        raise Mistake(
            f"{longest.row.where} (id {longest.id}) asks in {len(longest.input_ids)} text tokens, and with "
            f"{setting}={answer} that is more than the {takes} that the language model takes. Lower it"
            f"{', or set evaluation.predict_rows=0' if in_training else ''}."
        )


def rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
