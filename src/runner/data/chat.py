"""Messages to token ids and labels by the language model's own chat template, rendered once and tokenised once.

Learnt are the assistant's turns, up to and with the token that ends a turn; where they are is known by spans of that
one rendering, never by ids or by pieces that were tokenised apart.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runner.data.control_tokens import ControlTokens
from runner.data.rendering import Renderer, Rendering
from runner.data.rows import split_content
from runner.data.template import PROBE, Template, name_of
from runner.protocols import IGNORED, Example, Mistake, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """An example of L tokens, and what its tokens are."""

    example: Example
    asked: np.ndarray
    """bool [L]: a user's text."""
    messages: tuple[tuple[int, int], ...]
    """Of each of the row's messages the tokens of its text, start and stop, in an answer the end of turn included."""
    borders: tuple[int, ...]
    """Tokens with which something new begins after an answer."""


class ChatFormat:
    """`modalities` are those whose items get a place, in the order in which they stand before the first user text.

    `learn`: every assistant's turn or the last; `system`: whether the template writes the system's text, or it stands
    in front of the first user's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        modalities: Sequence[str],
        placement: Literal["front", "placeholder"],
        learn: Literal["all", "last"],
        system: Literal["template", "into_user"],
    ) -> None:
        if not tokenizer.is_fast:
            raise Mistake(
                f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell where in the text its tokens "
                "stand; a model folder with a tokenizer.json gives a fast one."
            )
        self.tokenizer = tokenizer
        self.learn = learn
        self.template = Template(tokenizer)
        self.control = ControlTokens(tokenizer, self.template)
        self.renderer = Renderer(self.template, self.control, modalities, placement, system)
        self.placeholders = self.renderer.placeholders
        self.end_of_turn = self.find_end_of_turn()

    @property
    def end_of_turn_ids(self) -> list[int]:
        """Where generation stops: the token that ends the assistant's turn, and the tokenizer's end of text."""
        ends = [self.end_of_turn, self.tokenizer.eos_token_id]
        return list(dict.fromkeys(id for id in ends if id is not None))

    def fingerprint(self) -> dict[str, Any]:
        """JSON of all that shapes a rendering and its tokens."""
        tokenizer = self.tokenizer
        written = f"{tokenizer.backend_tokenizer.to_str()}{tokenizer.chat_template}{tokenizer.special_tokens_map}"
        return {
            "tokenizer": hashlib.sha256(written.encode()).hexdigest(),
            "modalities": self.renderer.modalities,
            "placement": self.renderer.placement,
        }

    def find_end_of_turn(self) -> int:
        ids, _ = self.tokenize(self.template.render(Row("probe", "A probe", PROBE), PROBE, generate=False).rstrip())
        if ids[-1] not in self.control.special:
            raise Mistake(
                "The chat template does not end the assistant's turn with a special token, so the model could not "
                f"learn to stop: its rendering ends in {self.tokenizer.decode(ids[-4:])!r}. Mend the template."
            )
        return ids[-1]

    def example(self, row: Row) -> Example:
        """All of a row; a conversation that the user ends goes on with the header of the answer that is due."""
        return self.encode(row).example

    def truth(self, row: Row) -> str | None:
        """The last answer, if there is one, without white space around it."""
        if not row.messages or row.messages[-1].role != "assistant":
            return None
        return "".join(split_content(row.messages[-1].content, self.placeholders)[0]).strip()

    def encode(self, row: Row) -> Encoded:
        """Raises `Mistake` for a row that cannot be rendered as it is."""
        rendering = self.renderer.lay_out(row)
        ids, spans, first_token = self.tokenize_in_pieces(rendering)
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            raise Mistake(
                f"{name_of(row)}: the chat template begins with {self.tokenizer.bos_token} twice; mend the template."
            )
        answers = {
            number: (first_token[start], self.end_of_answer(row, rendering, start, ids, spans, first_token[start]) + 1)
            for number, start in rendering.answers
        }
        self.control.check_tokens(row, ids, spans, texts_of(row, rendering, self.placeholders, answers, spans))
        labels = np.full(len(ids), IGNORED, dtype=np.int32)
        for first, stop in list(answers.values())[0 if self.learn == "all" else -1 :]:
            labels[first:stop] = ids[first:stop]
        labels[:1] = IGNORED
        lefts, rights = (np.array(side, dtype=np.int64) for side in zip(*spans, strict=True))
        asked = np.zeros(len(ids), dtype=bool)
        messages = [(0, 0)] * len(row.messages)
        for number, start, stop in rendering.asked:
            messages[number] = tuple(np.searchsorted(lefts, (start, stop)).tolist())
            if row.messages[number].role == "user":
                asked |= (start <= lefts) & (lefts < rights) & (rights <= stop)
        for number, answer in answers.items():
            messages[number] = answer
        places = tuple((modality, item, first_token[place]) for modality, item, place in rendering.places)
        example = Example(row.id, np.array(ids, dtype=np.int32), labels, places, row)
        borders = [after_blanks(stop, rendering.text, spans) for _, stop in answers.values()]
        return Encoded(example, asked, tuple(messages), tuple(one for one in borders if one < len(ids)))

    def end_of_answer(
        self, row: Row, rendering: Rendering, start: int, ids: list[int], spans: Spans, first: int
    ) -> int:
        """The token that ends the answer whose first token is `first` and stands at character `start`."""
        limit = next((left for _, left, _ in rendering.asked if left > start), len(rendering.text))
        ends = (i for i in range(first, len(ids)) if ids[i] == self.end_of_turn and spans[i][0] < limit)
        end = next(ends, None)
        if end is None:
            raise Mistake(f"{name_of(row)}: the chat template does not end every answer; mend the template.")
        return end

    def tokenize_in_pieces(self, rendering: Rendering) -> tuple[list[int], Spans, dict[int, int]]:
        """Ids, the characters of each, and the first token of each place and answer.

        Places cut the text, since a token cannot stand on both sides of an item. So does the start of an answer whose
        first token would reach over it or look ahead: a prompt is tokenised just as its example begins.
        """
        text, answers = rendering.text, [start for _, start in rendering.answers]
        tokenized: dict[tuple[int, int], tuple[list[int], Spans]] = {}

        def piece(start: int, stop: int) -> tuple[list[int], Spans]:
            if (start, stop) not in tokenized:
                tokenized[start, stop] = self.tokenize(text[start:stop])
            return tokenized[start, stop]

        cuts = sorted({0, len(text), *(place for _, _, place in rendering.places)})
        for answer in answers:
            k = bisect_left(cuts, answer)
            head = piece(cuts[k - 1], answer)[0]
            if piece(cuts[k - 1], cuts[k])[0][: len(head)] != head:
                cuts.insert(k, answer)

        ids: list[int] = []
        spans: Spans = []
        first_token: dict[int, int] = {}
        for start, stop in zip(cuts, cuts[1:], strict=False):
            first_token[start] = len(ids)
            first_token |= {a: len(ids) + len(piece(start, a)[0]) for a in answers if start < a < stop}
            piece_ids, piece_spans = piece(start, stop)
            ids += piece_ids
            spans += [(start + left, start + right) for left, right in piece_spans]
        return ids, spans, first_token

    def tokenize(self, text: str) -> tuple[list[int], Spans]:
        """Ids, and the characters of each."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoding["input_ids"], encoding["offset_mapping"]


def texts_of(
    row: Row, rendering: Rendering, placeholders: Sequence[str], answers: dict[int, tuple[int, int]], spans: Spans
) -> list[tuple[int, int, int]]:
    """Message, counted from 1, with start and stop of its text in the rendering; an answer's is what stands last before
    its end of turn, where the template writes it as it is."""
    texts = [(number + 1, start, stop) for number, start, stop in rendering.asked]
    for (number, start), (_, after) in zip(rendering.answers, answers.values(), strict=True):
        content = "".join(split_content(row.messages[number].content, placeholders)[0]).strip()
        found = rendering.text.rfind(content, start, spans[after - 1][0])
        if found >= 0:
            texts.append((number + 1, found, found + len(content)))
    return texts


def after_blanks(first: int, text: str, spans: Spans) -> int:
    """The first token from `first` on that is more than white space."""
    while first < len(spans) and text[slice(*spans[first])].isspace():
        first += 1
    return first


def prompt_of(example: Example) -> Example:
    """An example up to its last answer, nothing of it to be learnt; of a conversation that the user ends, all of it."""
    stop = len(example.labels)
    if example.row.messages[-1].role == "assistant":
        learnt = np.flatnonzero(example.labels != IGNORED)
        gaps = np.flatnonzero(np.diff(learnt) > 1)
        stop = int(learnt[gaps[-1] + 1] if len(gaps) else learnt[0])
    return replace(
        example,
        input_ids=example.input_ids[:stop],
        labels=np.full(stop, IGNORED, dtype=np.int32),
        places=tuple(place for place in example.places if place[2] <= stop),
    )


def asks(example: Example) -> bool:
    """Whether it holds a question: a piece of a row may begin within an answer and end with it."""
    return any(message.role == "user" for message in example.row.messages)
