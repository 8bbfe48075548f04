"""What becomes of rows that are longer than the model may read: data.over_length, counted and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runner.data.chat import ChatFormat
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


def fit(
    examples: Sequence[Example],
    max_length: int,
    policy: Literal["error", "drop", "truncate_prompt"],
    chat: ChatFormat,
) -> tuple[list[Example], LengthReport]:
    """The examples that have at most `max_length` text tokens, or are made to; each has something to learn."""
    untaught = [example for example in examples if not (example.labels != IGNORED).any()]
    if untaught:
        raise Mistake(
            f"{rows(len(untaught))} without an assistant's turn, so there is nothing to learn from: "
            f"{named(untaught)}. Give each an answer or take it out."
        )
    over = [example for example in examples if len(example.input_ids) > max_length]
    longest = max((len(example.input_ids) for example in examples), default=0)
    if over and policy == "error":
        raise Mistake(
            f"{rows(len(over))} of {len(examples):,} longer than data.max_length={max_length} tokens: {named(over)}. "
            f"Raise it (data.max_length={longest}, if the language model takes that many), leave such rows out "
            "(data.over_length=drop) or cut their user texts from the front (data.over_length=truncate_prompt)."
        )
    if policy == "truncate_prompt":
        kept = [
            chat.truncate(example.row, max_length) if len(example.input_ids) > max_length else example
            for example in examples
        ]
    else:
        kept = [example for example in examples if len(example.input_ids) <= max_length]
    if examples and not kept:
        raise Mistake(
            f"Every one of the {rows(len(examples))} is longer than data.max_length={max_length} tokens: none is left. "
            f"The longest has {longest}; raise data.max_length."
        )
    truncated = len(over) if policy == "truncate_prompt" else 0
    return kept, LengthReport(
        total=len(examples),
        over=len(over),
        dropped=len(examples) - len(kept),
        truncated=truncated,
        tokens_cut=sum(len(example.input_ids) - max_length for example in over) if truncated else 0,
        longest=longest,
    )


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
