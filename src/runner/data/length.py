"""What becomes of rows that are longer than the model may read: data.over_length, counted and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.protocols import IGNORED, Example, Mistake

NAMED = 5
"""Rows that a message names."""


@dataclass(frozen=True)
class LengthReport:
    """Counts of rows, but for the last two."""

    total: int
    over: int
    dropped: int
    truncated: int
    tokens_cut: int
    longest: int
    """Text tokens of the longest row, before anything was done."""


class LengthPolicy:
    def __init__(self, max_length, policy, chat):
        self.max_length, self.policy, self.chat = max_length, policy, chat
        self.total = self.over = self.dropped = self.cut = self.longest = 0
        self.untaught, self.over_rows = [], []

    def fit(self, example):
        self.total += 1
        self.longest = max(self.longest, len(example.input_ids))
        if not (example.labels != IGNORED).any():
            self.untaught.append(example)
            return []
        if self.max_length is None or len(example.input_ids) <= self.max_length:
            return [example]
        self.over += 1
        self.over_rows.append(example)
        if self.policy == "truncate_prompt":
            self.cut += len(example.input_ids) - self.max_length
            return [self.chat.truncate(example.row, self.max_length)]
        self.dropped += 1
        return []

    def check(self):
        if self.untaught:
            raise Mistake(
                f"{rows(len(self.untaught))} without an assistant's turn, so there is nothing to learn from: "
                f"{named(self.untaught)}. Give each an answer or take it out."
            )
        if self.over and self.policy == "error":
            raise Mistake(
                f"{rows(self.over)} of {self.total:,} longer than data.max_length={self.max_length} tokens: {named(self.over_rows)}. "
                f"Raise it (data.max_length={self.longest}, if the language model takes that many), leave such rows out "
                "(data.over_length=drop) or cut their user texts from the front (data.over_length=truncate_prompt)."
            )
        if self.total and self.dropped == self.total:
            raise Mistake(
                f"Every one of the {rows(self.total)} is longer than data.max_length={self.max_length} tokens: none is left. "
                f"The longest has {self.longest}; raise data.max_length."
            )

    def report(self):
        return LengthReport(self.total, self.over, self.dropped, self.over - self.dropped, self.cut, self.longest)


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


def named(examples: Sequence[Example]) -> str:
    """The first few rows with where they stand and how long they are."""
    names = [f"{example.row.where} (id {example.id}, {len(example.input_ids)} tokens)" for example in examples[:NAMED]]
    return ", ".join(names) + (f" and {len(examples) - NAMED:,} more" if len(examples) > NAMED else "")
