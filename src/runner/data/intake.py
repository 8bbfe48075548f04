"""Rows of a source, checked and made into examples, one by one: what is wrong is told before a model is built.

What JSON can hold of a source that says what it is (`fingerprint`) is written once into flat files under data.cache and
memory-mapped from then on; of another source the examples are made anew and held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner import settings
from runner.cache import keep
from runner.data.bad_rows import BadReport, BadRows
from runner.data.decode import check_item_file
from runner.data.digest import RowsDigest
from runner.data.flat import FlatExamples, FlatWriter
from runner.data.length import LengthReport
from runner.data.mixed import Mixed
from runner.data.seen import Seen
from runner.fingerprint import of_json
from runner.protocols import BadRow, Example, Message, Mistake, Row

if TYPE_CHECKING:
    from runner.data.stream import Stream

META = "meta.json"
REMEMBERED: OrderedDict[str, Split] = OrderedDict()
MOST_REMEMBERED = 16
LIBRARIES = ("transformers", "tokenizers", "jinja2", "datasets", "pyarrow", "pillow", "numpy")
JUDGED = 1_000
"""Rows of a stream before the share of bad ones says something."""


class Fitting(Protocol):
    """What becomes of examples that are too long, one by one; told when the last one was."""

    def fit(self, example: Example) -> list[Example]: ...

    def check(self) -> None:
        """Raises `Mistake` for rows that may not be lost."""
        ...

    def report(self) -> LengthReport: ...


class Reader(Protocol):
    """What an objective's kind makes of a row."""

    def example(self, row: Row) -> Example:
        """Raises `Mistake` for a row that the model could not read."""
        ...

    def fitting(self, given: settings.Data) -> Fitting: ...

    def reads(self) -> Mapping[str, Any]:
        """JSON of all that shapes an example beside the row and the settings."""
        ...


@dataclass(frozen=True)
class Split:
    """One split's examples, and what was told of its rows while they were made."""

    examples: Sequence[Example]
    lengths: LengthReport
    bad: BadReport
    digest: str
    """Of what training sees of the rows, in order."""
    shares: tuple[tuple[int, float], ...] = ()
    """Of a mixture: how many examples each of its sources has, which follow each other, and its weight."""
    stream: Stream | None = None
    """Where rows are read as they are needed; `examples` are then the first ones."""


def take_in(
    split: str,
    rows: Iterable[Row | BadRow] | Mixed,
    reader: Reader,
    given: settings.Data,
    source: Mapping[str, Any] | None,
    in_memory: bool,
) -> Split:
    """`source` is what the row source calls itself; `in_memory`: its items are none that JSON can hold.

    Raises `Mistake` for rows that may not be left out.
    """
    if source is None:
        return in_arrays(split, rows, reader, given)
    limits = {name: value for name, value in asdict(given).items() if name in SHAPES}
    made_of = {"split": split, "source": source, "reads": reader.reads(), "limits": limits, "code": code()}
    if in_memory:
        return remembered(of_json(made_of), lambda: in_arrays(split, rows, reader, given))
    if given.cache is None:
        return in_arrays(split, rows, reader, given)
    try:
        folder = keep(given.cache, "rows", made_of, lambda folder: write(Intake(split, rows, reader, given), folder))
    except NotKept as made:
        return made.split
    return opened(folder, rows)


def in_arrays(split: str, rows: Iterable[Row | BadRow] | Mixed, reader: Reader, given: settings.Data) -> Split:
    """In memory, with the rows as the objects that they are."""
    return Intake(split, rows, reader, given).make(FlatWriter(None, holds_rows=True))


SHAPES = ("on_bad_row", "max_bad_share", "learn", "system", "max_length", "max_prompt_length", "over_length")
"""The settings of `data` that an example goes by."""


class Intake:
    """One split on its way from rows to examples."""

    def __init__(self, split: str, rows: Iterable[Row | BadRow] | Mixed, reader: Reader, given: settings.Data) -> None:
        self.rows = rows
        self.parts = rows.parts if isinstance(rows, Mixed) else (rows,)
        self.weights: Mapping[str, float] = rows.weights if isinstance(rows, Mixed) else {}
        self.reader = reader
        self.bad = BadRows(split, given.on_bad_row, given.max_bad_share)
        self.fitting = reader.fitting(given)
        self.seen = Seen()
        self.by_files = False
        """Whether a row was left out for a file that may be mended."""

    def make(self, writer: FlatWriter) -> Split:
        digest = RowsDigest()
        sizes: list[int] = []
        for row in self.bad.sound(self.one_by_one(writer, sizes)):
            self.check_kind(row)
            if not self.is_new(row, writer):
                continue
            examples = self.examples_of(row)
            if examples:
                self.seen.note(row.id, writer.count)
            for example in examples:
                digest.update(example)
                writer.append(example)
        self.fitting.check()
        for name, size in zip(self.weights, sizes, strict=False):
            if not size:
                raise Mistake(
                    f"data.sources.{name}: none of its rows is left to draw from. Take it out of the mixture."
                )
        shares = tuple(zip(sizes, self.weights.values(), strict=True)) if self.weights else ()
        return Split(writer.close(), self.fitting.report(), self.bad.report(), digest.hexdigest(), shares)

    def one_by_one(self, writer: FlatWriter, sizes: list[int]) -> Iterator[Row | BadRow]:
        """The rows of all parts, and how many examples each part came to."""
        for rows in self.parts:
            before = writer.count
            yield from rows
            sizes.append(writer.count - before)

    def of_stream(self, row: Row | BadRow) -> list[Example]:
        """The examples of a row that is not kept: nobody knows which ids were there before."""
        self.bad.total += 1
        if isinstance(row, BadRow):
            self.bad.note(row.where, row.reason)
            return []
        self.check_kind(row)
        return self.examples_of(row)

    def check_so_far(self) -> None:
        """Raises `Mistake` where a stream must not go on."""
        if self.bad.policy == "error" or self.bad.total >= JUDGED:
            self.bad.check()
        self.fitting.check()

    def check_kind(self, row: Any) -> None:
        """Raises `Mistake` for a source that gives no rows."""
        wrong = fault_of_row(row)
        if wrong:
            raise Mistake(
                f"data: read gave a row of the {self.bad.split} split {wrong}. See Row in runner/protocols.py."
            )

    def is_new(self, row: Row, writer: FlatWriter) -> bool:
        """Whether no earlier row that is used has its id; else the reason is noted."""
        number = self.seen.find(row.id)
        if number is None:
            return True
        self.bad.note(row.where, f"has the id `{row.id}`, which {writer.row_at(number).where} has already.")
        return False

    def examples_of(self, row: Row) -> list[Example]:
        """Of a sound row those that it comes to; of another none, and the reason is noted."""
        place = f"{row.where} (id {row.id})"
        reason = fault_of_files(row)
        self.by_files = self.by_files or reason is not None
        if reason is None:
            try:
                example = self.reader.example(row)
            except Mistake as mistake:
                reason = str(mistake).removeprefix(place).lstrip(": ")
        if reason is not None:
            self.bad.note(place, reason)
            return []
        return self.fitting.fit(example)


def fault_of_row(row: Any) -> str | None:
    if not isinstance(row, Row):
        return f"that is a {type(row).__name__}; it must be a runner.protocols.Row"
    name: Any = row.id
    messages: Any = row.messages
    if not isinstance(name, str):
        return f"whose id is {name!r} ({row.where}); it must be a text"
    if not isinstance(messages, tuple) or not all(isinstance(one, Message) for one in messages):
        return f"whose messages are no tuple of Message ({row.where}, id {name})"
    loose = [modality for modality, items in row.items.items() if not isinstance(items, tuple)]
    return f"whose items of {loose[0]} are no tuple ({row.where}, id {name})" if loose else None


def fault_of_files(row: Row) -> str | None:
    """What is wrong with the first of a row's files that cannot be decoded whole."""
    for modality, items in row.items.items():
        for item in items:
            if isinstance(item, Path):
                try:
                    check_item_file(modality, item)
                except Mistake as mistake:
                    return str(mistake)
    return None


def remembered(key: str, make: Callable[[], Split]) -> Split:
    """What this process made before, by an earlier job of a sweep for instance."""
    if key not in REMEMBERED:
        REMEMBERED[key] = make()
    REMEMBERED.move_to_end(key)
    while len(REMEMBERED) > MOST_REMEMBERED:
        REMEMBERED.popitem(last=False)
    return REMEMBERED[key]


class NotKept(Exception):
    """A split that is made anew each time, as the files of rows that were left out may be mended."""

    def __init__(self, split: Split) -> None:
        self.split = split


def write(intake: Intake, folder: Path) -> None:
    split = intake.make(FlatWriter(folder, holds_rows=False))
    if intake.by_files or any(" does not exist" in line for line in split.bad.lines):
        raise NotKept(split)
    told = {"lengths": asdict(split.lengths), "bad": asdict(split.bad), "digest": split.digest, "shares": split.shares}
    told["unseen"] = getattr(intake.rows, "unseen", {})
    (folder / META).write_text(json.dumps(told))


def opened(folder: Path, rows: Any) -> Split:
    """What was kept of these rows, which are not gone through again."""
    told = json.loads((folder / META).read_text())
    if hasattr(rows, "restore"):
        rows.restore(told["unseen"])
    return Split(
        FlatExamples.open(folder),
        LengthReport(**told["lengths"]),
        BadReport(**told["bad"]),
        told["digest"],
        tuple((size, weight) for size, weight in told["shares"]),
    )


@cache
def code() -> str:
    """A hash of the code that makes examples of rows, and of the libraries': what another one made is made anew."""
    digest = hashlib.sha256("".join(f"{name} {version(name)} " for name in LIBRARIES).encode())
    here = Path(__file__).parent
    for file in (*sorted(here.glob("*.py")), here.parent / "answering.py", here.parent / "labelling.py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()
