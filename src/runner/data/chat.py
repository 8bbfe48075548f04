r"""Messages to token ids and labels by the language model's own chat template, rendered once and tokenised once.

Noncharacters mark user texts and places in that rendering and are taken out before it is tokenised, so what the model
reads is what its template writes. Learnt are the assistant's turns, up to and with the token that ends a turn.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jinja2 import TemplateError

from runner.data.rows import check_placeholders, placeholder_names, split_content
from runner.protocols import IGNORED, Example, Message, Mistake, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER_START, USER_END, PLACE = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = re.compile(f"[{USER_START}{USER_END}{PLACE}]")

PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '\n' if not loop.first }}"
    "{{ message.role | capitalize + ':\n' + message.content | trim }}"
    "{{ eos_token if message.role == 'assistant' }}"
    "{% endfor %}"
    "{{ '\nAssistant:\n' if add_generation_prompt }}"
)
"""For a tokenizer without a template. Newlines and trimmed contents keep tokens from straddling a turn's border."""


@dataclass(frozen=True)
class Rendering:
    """A conversation as its template writes it; positions are characters of `text`."""

    text: str
    user_texts: list[tuple[int, int]]
    places: list[tuple[str, int, int]]
    answers: list[int]
    """Where each assistant's turn starts, after its header."""


class ChatFormat:
    """`modalities` are those whose items get a place, in the order in which they stand before the first user text."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        modalities: Sequence[str],
        placement: Literal["front", "placeholder"],
    ) -> None:
        if not tokenizer.is_fast:
            raise Mistake(
                f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell where in the text its tokens "
                "stand; a model folder with a tokenizer.json gives a fast one."
            )
        self.tokenizer = tokenizer
        self.modalities = tuple(modalities)
        self.placement = placement
        self.placeholders = placeholder_names(modalities)
        self.template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        if self.template and not tokenizer.eos_token:
            raise Mistake("The tokenizer has neither a chat template nor an end-of-text token, so no turn can end.")
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        special = added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.special_tokens = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
        self.end_of_turn = self.find_end_of_turn(set(special.values()))

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
            "modalities": self.modalities,
            "placement": self.placement,
        }

    def find_end_of_turn(self, special_ids: set[int]) -> int:
        row = Row("probe", "A probe", (Message("user", "Question"), Message("assistant", "Answer")))
        ids, _ = self.tokenize(self.render(row, row.messages, generate=False).rstrip())
        if ids[-1] not in special_ids:
            raise Mistake(
                "The chat template does not end the assistant's turn with a special token, so the model could not "
                f"learn to stop: its rendering ends in {self.tokenizer.decode(ids[-4:])!r}. Mend the template."
            )
        return ids[-1]

    def example(self, row: Row) -> Example:
        """All of a row; a conversation that the user ends goes on with the header of the answer that is due."""
        return self.encode(row)[0]

    def truth(self, row: Row) -> str | None:
        """The last answer, if there is one, without white space around it."""
        if not row.messages or row.messages[-1].role != "assistant":
            return None
        return "".join(split_content(row.messages[-1].content, self.placeholders)[0]).strip()

    def truncate(self, row: Row, max_length: int) -> Example:
        """The row's example without so many of the first tokens of its user texts that it has `max_length` tokens."""
        example, content = self.encode(row)
        over = max(0, len(example.input_ids) - max_length)
        if over > len(content):
            raise Mistake(
                f"{row.where} (id {row.id}) has {len(example.input_ids)} tokens, of which only {len(content)} are the "
                f"user's: it cannot be cut to data.max_length={max_length}. Raise it, or drop such rows "
                "(data.over_length=drop)."
            )
        kept = np.ones(len(example.input_ids), dtype=bool)
        kept[content[:over]] = False
        position = np.concatenate([[0], kept.cumsum()])
        return replace(
            example,
            input_ids=example.input_ids[kept],
            labels=example.labels[kept],
            places=tuple((modality, item, int(position[place])) for modality, item, place in example.places),
        )

    def encode(self, row: Row) -> tuple[Example, list[int]]:
        """The example, and which of its tokens are a user's text."""
        rendering = self.lay_out(row)
        ids, spans, first_token = self.tokenize_in_pieces(rendering)
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            raise Mistake(f"The chat template begins with {self.tokenizer.bos_token} twice; mend the template.")
        labels = np.full(len(ids), IGNORED, dtype=np.int32)
        for answer in rendering.answers:
            first = first_token[answer]
            next_user = next((start for start, _ in rendering.user_texts if start > answer), len(rendering.text))
            ends = (i for i in range(first, len(ids)) if ids[i] == self.end_of_turn and spans[i][0] < next_user)
            end = next(ends, None)
            if end is None:
                raise Mistake(f"{name_of(row)}: the chat template does not end every answer; mend the template.")
            labels[first : end + 1] = ids[first : end + 1]
        labels[:1] = IGNORED
        content = [
            i
            for i, (left, right) in enumerate(spans)
            if any(start <= left < right <= stop for start, stop in rendering.user_texts)
        ]
        places = tuple((modality, item, first_token[place]) for modality, item, place in rendering.places)
        return Example(row.id, np.array(ids, dtype=np.int32), labels, places, row), content

    def tokenize_in_pieces(self, rendering: Rendering) -> tuple[list[int], list[tuple[int, int]], dict[int, int]]:
        """Ids, the characters of each, and the first token of each place and answer.

        Places cut the text, since a token cannot stand on both sides of an item. So does the start of an answer whose
        first token would reach over it or look ahead: a prompt is tokenised just as its example begins.
        """
        text, answers = rendering.text, rendering.answers
        tokenized: dict[tuple[int, int], tuple[list[int], list[tuple[int, int]]]] = {}

        def piece(start: int, stop: int) -> tuple[list[int], list[tuple[int, int]]]:
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
        spans: list[tuple[int, int]] = []
        first_token: dict[int, int] = {}
        for start, stop in zip(cuts, cuts[1:], strict=False):
            first_token[start] = len(ids)
            first_token |= {a: len(ids) + len(piece(start, a)[0]) for a in answers if start < a < stop}
            piece_ids, piece_spans = piece(start, stop)
            ids += piece_ids
            spans += [(start + left, start + right) for left, right in piece_spans]
        return ids, spans, first_token

    def lay_out(self, row: Row) -> Rendering:
        messages, front, placed = self.mark(row)
        marked = self.render(row, messages, generate=messages[-1].role == "user")
        text: list[str] = []
        positions: dict[str, list[int]] = {mark: [] for mark in (USER_START, USER_END, PLACE)}
        length = 0
        end = 0
        for match in MARKS.finditer(marked):
            text.append(marked[end : match.start()])
            length += match.start() - end
            positions[match[0]].append(length)
            end = match.end()
        text.append(marked[end:])
        users = sum(message.role == "user" for message in messages)
        if [len(found) for found in positions.values()] != [users, users, len(placed)]:
            raise Mistake(
                f"{name_of(row)}: the chat template does not write every message once as it is; mend the template."
            )
        answers = []
        for i, message in enumerate(messages):
            if message.role == "assistant":
                before = self.render(row, messages[:i], generate=True)
                if not marked.startswith(before):
                    raise Mistake(
                        f"{name_of(row)}: the chat template writes what comes before message {i + 1} differently once "
                        "that is there, so the model would learn on a text that it never meets; mend the template."
                    )
                answers.append(len(MARKS.sub("", before)))
        places = [(*item, positions[USER_START][0]) for item in front]
        places += [(*item, place) for item, place in zip(placed, positions[PLACE], strict=True)]
        places.sort(key=lambda place: place[2])
        user_texts = list(zip(positions[USER_START], positions[USER_END], strict=True))
        return Rendering("".join(text), user_texts, places, answers)

    def mark(self, row: Row) -> tuple[list[Message], list[tuple[str, int]], list[tuple[str, int]]]:
        """Messages with marks in them, the items before the first user text, the items at placeholders."""
        if not any(message.role == "user" for message in row.messages):
            raise Mistake(
                f"{name_of(row)} has no question: it needs `messages`, columns named by data.fields "
                "(data.fields={user: question, assistant: answer}), or one question for all rows (data.prompt)."
            )
        try:
            check_placeholders(row, self.placeholders)
        except Mistake as mistake:
            raise Mistake(f"{name_of(row)}: {mistake}") from None
        messages, placed = [], []
        count = dict.fromkeys(self.placeholders, 0)
        for number, message in enumerate(row.messages, start=1):
            if MARKS.search(message.content):
                raise Mistake(f"{name_of(row)}: message {number} holds a noncharacter (U+FDD0 to U+FDD2); take it out.")
            texts, found = split_content(message.content, self.placeholders)
            if self.placement == "placeholder":
                content = PLACE.join(texts)
                for modality in found:
                    placed.append((modality, count[modality]))
                    count[modality] += 1
            else:
                content = "".join(texts).strip() if found else texts[0]
            special = self.special_tokens.search(content)
            if special:
                raise Mistake(
                    f"{name_of(row)}: message {number} holds {special[0]}, a special token of the language model, "
                    "which would end or forge a turn; take it out."
                )
            if message.role == "user":
                # Marks stand inside the outer white space: a template that trims goes on trimming.
                inner = content.strip()
                lead = content[: len(content) - len(content.lstrip())] if inner else ""
                tail = content[len(lead) + len(inner) :]
                content = f"{lead}{USER_START}{inner}{USER_END}{tail}"
            messages.append(Message(message.role, content))
        with_placeholder = {modality for modality, _ in placed}
        front = [
            (modality, item)
            for modality in self.modalities
            if modality not in with_placeholder
            for item in range(len(row.items.get(modality, ())))
        ]
        return messages, front, placed

    def render(self, row: Row, messages: Sequence[Message], generate: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=generate
            )
        except (TemplateError, TypeError) as error:
            raise Mistake(
                f"{name_of(row)}: the language model's chat template refuses the messages: {error}."
            ) from error
        return str(text)

    def tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters of each."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoding["input_ids"], encoding["offset_mapping"]


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


def name_of(row: Row) -> str:
    return f"{row.where} (id {row.id})"
