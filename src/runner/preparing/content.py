"""What a row holds, worked out once: its texts normalised, its items read, measured and hashed.

An item is the same as another when its content is, wherever it lies.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from runner import fingerprint
from runner.data.decode import decode
from runner.protocols import Mistake, Row

UNKNOWN = "unknown"
"""The language of a text that py3langid is not sure of."""
SURE = 0.5
"""The probability from which on it is."""
TOLD_BY = 1000
"""Characters of a row's texts that its language is told by."""
Count = Callable[[Row], tuple[int, int]]
"""A row's tokens, and how many of them are supervised."""


@dataclass(frozen=True)
class Item:
    modality: str
    sha256: str
    """Of a file its bytes'; of what is in memory its pixels' or numbers'."""
    measures: Mapping[str, float]
    """Of a picture `width` and `height` in pixels, of a sound `rate` in Hz, `channels` and `seconds`, of a series
    `channels`, `steps` and the share `missing`; of a file its `bytes`."""


@dataclass(frozen=True)
class Content:
    row: Row
    items: tuple[Item, ...]
    """Without those for a text encoder, which are text."""
    question: str
    """What is compared, folded."""
    context: str
    """The same for rows with the same items and the same fields that belong to the question."""
    question_key: str
    """The same for rows with the same question in the same context."""
    answer_key: str
    """The same for rows with the same answers, folded, and the same label."""
    key: str
    """The same for rows that say the same."""
    characters: int
    words: int
    language: str | None
    tokens: int | None
    supervised: int | None


class Reader:
    """Rows to their content. `context` are fields that belong to the question; `count` goes by the language model,
    `language` by a text, None: not asked for."""

    def __init__(
        self,
        compare: Literal["question", "all"],
        context: Sequence[str],
        count: Count | None,
        language: Callable[[str], str] | None,
    ) -> None:
        self.compare = compare
        self.context = context
        self.count = count
        self.language = language
        self.files: dict[tuple[str, Path], Item] = {}

    def read(self, row: Row) -> Content:
        """Raises `Mistake` for an item that is no whole picture, sound or series, and for a row that the language model
        could not read."""
        items = tuple(
            self.item(modality, value)
            for modality, values in sorted(row.items.items())
            for value in values
            if modality != "text"
        )
        texts = texts_of(row)
        asked = texts if self.compare == "all" else questions_of(row)
        question = folded(" ".join(asked))
        held: list[Any] = [(item.modality, item.sha256) for item in items]
        held += [(name, row.extra[name]) for name in self.context if row.extra.get(name) is not None]
        turns = [(message.role, spaced(message.content)) for message in row.messages]
        named = [question, held] if question or held else [row.id, row.where]
        tokens, supervised = self.count(row) if self.count else (None, None)
        told = " ".join(" ".join(texts).split())[:TOLD_BY]
        return Content(
            row=row,
            items=items,
            question=question,
            context=fingerprint.of_json(held),
            question_key=fingerprint.of_json(named),
            answer_key=fingerprint.of_json([[folded(answer) for answer in answers_of(row)], row.label]),
            key=fingerprint.of_json([turns, list(row.items.get("text", ())), held, row.label, [] if turns else named]),
            characters=sum(map(len, texts)),
            words=sum(len(text.split()) for text in texts),
            language=self.language(told) if self.language and told else None,
            tokens=tokens,
            supervised=supervised,
        )

    def item(self, modality: str, value: Any) -> Item:
        """Files that several rows share are read once."""
        held = Path(value) if isinstance(value, str) else value
        try:
            if not isinstance(held, Path):
                return measured(modality, held, decode(modality, held))
            if (modality, held) not in self.files:
                self.files[modality, held] = measured(modality, held, decode(modality, held))
        except Mistake as mistake:
            raise Mistake(f"its `{modality}` cannot be read: {mistake}") from mistake
        return self.files[modality, held]


def measured(modality: str, value: Any, decoded: Any) -> Item:
    """`decoded` is what an encoder's preprocess would get of `value`."""
    measures: dict[str, float] = {}
    if isinstance(decoded, Image.Image):
        measures = {"width": decoded.width, "height": decoded.height}
        digest = hashlib.sha256(f"{decoded.mode} {decoded.size}\0".encode() + decoded.tobytes()).hexdigest()
    elif isinstance(decoded, tuple) and len(decoded) == 2:
        samples, rate = decoded
        measures = {"rate": rate, "channels": len(samples), "seconds": samples.shape[-1] / rate}
        digest = hash_of_numbers(samples, f"{rate}")
    elif isinstance(decoded, np.ndarray):
        channels = np.atleast_2d(decoded)
        missing = float(np.isnan(channels).mean())
        measures = {"channels": len(channels), "steps": channels.shape[-1], "missing": missing}
        digest = hash_of_numbers(decoded, "")
    elif not isinstance(value, Path):
        raise Mistake(f"it is a {type(value).__name__}, which cannot be written into a dataset.")
    if isinstance(value, Path):
        measures["bytes"] = value.stat().st_size
        digest = fingerprint.of_file(value)
    return Item(modality, digest, measures)


def hash_of_numbers(numbers: np.ndarray, besides: str) -> str:
    """The same for the same numbers, whichever NaN stands for a missing one."""
    values = np.array(numbers, dtype=np.float32)
    values[np.isnan(values)] = np.nan
    return hashlib.sha256(f"{besides} {values.shape}\0".encode() + values.tobytes()).hexdigest()


def texts_of(row: Row) -> list[str]:
    """All that is written in a row: its turns, and its texts for a text encoder."""
    return [*(message.content for message in row.messages), *row.items.get("text", ())]


def questions_of(row: Row) -> list[str]:
    """Its user's turns, and its texts for a text encoder. A system turn is often the same in all rows."""
    return [*(message.content for message in row.messages if message.role == "user"), *row.items.get("text", ())]


def answers_of(row: Row) -> list[str]:
    return [message.content for message in row.messages if message.role == "assistant"]


def spaced(text: str) -> str:
    """In Unicode's NFC, each run of white space one space."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def folded(text: str) -> str:
    """And without upper and lower case (Unicode's case folding)."""
    return unicodedata.normalize("NFC", spaced(text).casefold())


def language_of(text: str) -> str:
    """An ISO 639 code by py3langid (Lui and Baldwin, "langid.py", 2012), or `unknown`."""
    language, probability = identifier().classify(text)
    return str(language) if probability >= SURE else UNKNOWN


@cache
def identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
