"""Tokens as text: what each adds to what stands before it, and as one the tokens of a character that none is alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a part of a character is decoded to."""
TOGETHER = 8
"""Tokens that are tried as one character: bytes of UTF-8, of which some tokens hold the end of one and the next."""


class Glyphs:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        alone, after = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("a", f"a{BROKEN}"))
        self.written = after[len(alone) :]
        """The sign itself, where a row has it."""
        self.decode = lru_cache(maxsize=100_000)(self.decoded)

    def split(self, ids: Sequence[int], before: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """Text and ids of each glyph. `before`: the tokens of the glyph that comes before them, or none."""
        found: list[tuple[str, tuple[int, ...]]] = []
        earlier, rest = tuple(before), tuple(ids)
        while rest:
            group = self.first_of(earlier, rest)
            text = self.added(earlier, group)
            found.append((text, group))
            # Half a character spoils what comes after it.
            earlier = () if BROKEN in text and group != self.written else group
            rest = rest[len(group) :]
        return found

    def first_of(self, earlier: tuple[int, ...], rest: tuple[int, ...]) -> tuple[int, ...]:
        if rest[: len(self.written)] == self.written:
            return self.written
        groups = (rest[:count] for count in range(1, min(TOGETHER, len(rest)) + 1))
        return next((group for group in groups if BROKEN not in self.added(earlier, group)), rest[:1])

    def added(self, earlier: tuple[int, ...], group: tuple[int, ...]) -> str:
        """A tokenizer with a sign for spaces leaves out the one at the very start, so a token alone says too little."""
        head, whole = self.decode(earlier), self.decode(earlier + group)
        return whole[len(head) :] if whole.startswith(head) else self.decode(group)

    def decoded(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if ids else ""


HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Control characters, but tab and new line; and those that change where others are seen."""


def visible(text: str) -> str:
    """With signs for characters that a terminal or a browser would obey instead of showing them."""
    return HIDDEN.sub(lambda found: sign_of(ord(found[0])), text)


def sign_of(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"
