r"""A row as its chat template writes it, and where in that text the row's own texts and the places of its items are.

Noncharacters mark texts and places in the rendering and are taken out again, so what the model reads is what its
template writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runner.data.control_tokens import ControlTokens
from runner.data.rows import check_placeholders, placeholder_names, split_content
from runner.data.template import Template, name_of
from runner.protocols import Message, Mistake, Row

START, END, PLACE = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = re.compile(f"[{START}{END}{PLACE}]")


@dataclass(frozen=True)
class Rendering:
    """Positions are characters of `text`; messages are counted as in the row, from 0."""

    text: str
    asked: list[tuple[int, int, int]]
    """Message, start and stop of each text of the system and of users, without the white space around it."""
    places: list[tuple[str, int, int]]
    answers: list[tuple[int, int]]
    """Message and start of each assistant's turn, after its header."""


@dataclass(frozen=True)
class Marked:
    messages: list[Message]
    """With marks around texts and at places; the assistant's have none."""
    numbers: list[int]
    """Which message of the row each of them is."""
    texts: list[tuple[int, str]]
    """Message and text between each pair of marks."""
    front: list[tuple[str, int]]
    """Items that stand before the first user text."""
    placed: list[tuple[str, int]]
    """Items at placeholders."""


class Renderer:
    """`modalities` are those whose items get a place, in the order in which they stand before the first user text."""

    def __init__(
        self,
        template: Template,
        control: ControlTokens,
        modalities: Sequence[str],
        placement: Literal["front", "placeholder"],
        system: Literal["template", "into_user"],
    ) -> None:
        self.template = template
        self.control = control
        self.modalities = tuple(modalities)
        self.placement = placement
        self.system = system
        self.placeholders = placeholder_names(modalities)

    def lay_out(self, row: Row) -> Rendering:
        """Raises `Mistake` for a row or a template that would make the model learn something else than the row."""
        marked = self.mark(row)
        messages = marked.messages
        written = self.template.render(row, messages, generate=messages[-1].role == "user")
        text, positions = without_marks(written)
        spans = list(zip(positions[START], positions[END], strict=False))
        if [content for _, content in marked.texts] != [text[start:stop] for start, stop in spans] or (
            len(positions[START]) != len(positions[END]) or len(positions[PLACE]) != len(marked.placed)
        ):
            raise Mistake(
                f"{name_of(row)}: the chat template does not write every message once as it is; mend the template."
            )
        asked = [(message, *span) for (message, _), span in zip(marked.texts, spans, strict=True)]
        answers = []
        for k, (number, message) in enumerate(zip(marked.numbers, messages, strict=True)):
            if message.role == "assistant":
                before = self.template.render(row, messages[:k], generate=True)
                if not written.startswith(before):
                    raise Mistake(
                        f"{name_of(row)}: the chat template writes what comes before message {number + 1} differently "
                        "once that is there, so the model would learn on a text that it never meets; mend the template."
                    )
                answers.append((number, len(MARKS.sub("", before))))
        first = next(start for message, start, _ in asked if row.messages[message].role == "user")
        places = [(*item, first) for item in marked.front]
        places += [(*item, place) for item, place in zip(marked.placed, positions[PLACE], strict=True)]
        places.sort(key=lambda place: place[2])
        return Rendering(text, asked, places, answers)

    def mark(self, row: Row) -> Marked:
        self.check(row)
        messages: list[Message] = []
        numbers: list[int] = []
        marked_texts: list[tuple[int, str]] = []
        placed: list[tuple[str, int]] = []
        system = ""
        count = dict.fromkeys(self.placeholders, 0)
        for number, message in enumerate(row.messages):
            texts, found = split_content(message.content, self.placeholders)
            if self.placement == "placeholder":
                content = PLACE.join(texts)
                for modality in found:
                    placed.append((modality, count[modality]))
                    count[modality] += 1
            else:
                content = "".join(texts).strip() if found else texts[0]
            self.control.check_content(row, number + 1, content)
            # A blank system text has no marks: a template may pass it by, and marks would make it a text.
            if message.role == "user" or (message.role == "system" and content.strip()):
                marked_texts.append((number, content.strip().replace(PLACE, "")))
                content = with_marks(content)
            if message.role == "system" and self.system == "into_user":
                system = content + "\n\n" if content.strip() else ""
                continue
            if message.role == "user":
                content, system = system + content, ""
            messages.append(Message(message.role, content))
            numbers.append(number)
        with_placeholder = {modality for modality, _ in placed}
        front = [
            (modality, item)
            for modality in self.modalities
            if modality not in with_placeholder
            for item in range(len(row.items.get(modality, ())))
        ]
        return Marked(messages, numbers, marked_texts, front, placed)

    def check(self, row: Row) -> None:
        """Raises `Mistake` for what no template could render."""
        if not any(message.role == "user" for message in row.messages):
            raise Mistake(
                f"{name_of(row)} has no question: it needs `messages`, columns named by data.fields "
                "(data.fields={user: question, assistant: answer}), or one question for all rows (data.prompt)."
            )
        try:
            check_placeholders(row, self.placeholders)
        except Mistake as mistake:
            raise Mistake(f"{name_of(row)}: {mistake}") from None
        for number, message in enumerate(row.messages, start=1):
            if MARKS.search(message.content):
                raise Mistake(f"{name_of(row)}: message {number} holds a noncharacter (U+FDD0 to U+FDD2); take it out.")
            try:
                message.content.encode()
            except UnicodeEncodeError:
                raise Mistake(
                    f"{name_of(row)}: message {number} holds half of a surrogate pair, which is no character; take it "
                    "out."
                ) from None
        fault = self.template.system_fault
        if fault and self.system == "template" and row.messages[0].role == "system":
            raise Mistake(
                f"{name_of(row)} has a system message, and the language model's chat template {fault}. Put its text in "
                "front of the first user's (data.system=into_user), or take it out."
            )


def with_marks(content: str) -> str:
    """Marks stand inside the outer white space: a template that trims goes on trimming."""
    inner = content.strip()
    lead = content[: len(content) - len(content.lstrip())] if inner else ""
    return f"{lead}{START}{inner}{END}{content[len(lead) + len(inner) :]}"


def without_marks(written: str) -> tuple[str, dict[str, list[int]]]:
    """The text, and by mark where in it they stood."""
    positions: dict[str, list[int]] = {mark: [] for mark in (START, END, PLACE)}
    pieces, end, length = [], 0, 0
    for match in MARKS.finditer(written):
        pieces.append(written[end : match.start()])
        length += match.start() - end
        positions[match[0]].append(length)
        end = match.end()
    return "".join([*pieces, written[end:]]), positions
