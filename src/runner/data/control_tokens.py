"""Tokens that steer a language model, and that no text of a row may become."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from runner.data.template import Template, name_of
from runner.protocols import Mistake, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ControlTokens:
    """The tokenizer's special tokens; and those among its other added ones that the chat template itself writes, like
    `<tool_call>`. An answer may hold the latter: the model is to write them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        added = tokenizer.added_tokens_decoder
        self.special = {id: token.content for id, token in added.items() if token.special}
        self.special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        written = {
            id: token.content
            for id, token in added.items()
            if is_markup(token.content) and token.content in template.source
        }
        self.all = self.special | written
        self.in_answers, self.elsewhere = any_of(self.special.values()), any_of(self.all.values())

    def check_content(self, row: Row, number: int, content: str) -> None:
        """Raises `Mistake` for the content of message `number`, counted from 1, that holds one by its name."""
        is_answer = row.messages[number - 1].role == "assistant"
        found = (self.in_answers if is_answer else self.elsewhere).search(content)
        if found:
            raise forged(row, number, "holds", found[0])

    def check_tokens(
        self,
        row: Row,
        ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        texts: Iterable[tuple[int, int, int]],
    ) -> None:
        """Raises `Mistake` where one lies in a message's text all the same: made of its end and of what the template
        writes there, or of other characters by the tokenizer's normalisation. `texts`: message, start and stop."""
        found = [(one, *spans[i]) for i, one in enumerate(ids) if one in self.all]
        for number, start, stop in texts:
            own = self.special if row.messages[number - 1].role == "assistant" else self.all
            for one, left, right in found:
                if one in own and left < stop and start < right:
                    raise forged(row, number, "becomes", own[one])


def is_markup(token: str) -> bool:
    """`<think>` or `[INST]`: not white space, and no word or sign as it may stand in any text."""
    return bool(re.search(r"\w", token) and re.search(r"[^\w\s]", token))


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """The longest where several begin alike; nothing where there is none."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def forged(row: Row, number: int, how: str, token: str) -> Mistake:
    return Mistake(
        f"{name_of(row)}: message {number} {how} {token}, a special token of the language model, which would end or "
        "forge a turn; take it out."
    )
