"""Several row sources as one: their rows are drawn by weights, exactly, in an order that is a function of the seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from runner.data.mixed import Mixed
from runner.protocols import BadRow, Mistake, Row, RowSource
from runner.spelling import did_you_mean


class Mixture:
    """`sources` by a name that goes before their rows' ids; `weights` by the same names, null: each once."""

    def __init__(self, sources: dict[str, Any], weights: dict[str, float] | None) -> None:
        if len(sources) < 2:
            raise Mistake(
                "data.sources: a mixture has two or more. Add one by +data@data.sources.NAME=jsonl, and set "
                "data.sources.NAME.path=FILE."
            )
        for name in weights or ():
            if name not in sources:
                raise Mistake(f"data.weights.{name}: there is no such source{did_you_mean(name, sources)}")
        for name in sources:
            if weights is not None and not weights.get(name, 0) > 0:
                raise Mistake(f"data.weights.{name} is missing or not above 0. Give every source one, or take it out.")
        self.sources: dict[str, RowSource] = sources
        self.weights = weights

    def fingerprint(self) -> Mapping[str, Any] | None:
        prints = {name: getattr(source, "fingerprint", lambda: None)() for name, source in self.sources.items()}
        return None if None in prints.values() else {"sources": list(prints.items()), "weights": self.weights}

    def read(self, modalities: Sequence[str]) -> dict[str, Iterable[Row | BadRow] | Mixed]:
        """train is mixed; of val and test each source's rows come once."""
        splits = {name: source.read(modalities) for name, source in self.sources.items()}
        for name, some in splits.items():
            if "train" not in some:
                raise Mistake(f"data.sources.{name} has no train split, so nothing of it can be mixed.")
            if isinstance(some["train"], Mixed):
                raise Mistake(f"data.sources.{name} is a mixture by weights itself. Name its sources here instead.")
        mixed: dict[str, Iterable[Row | BadRow] | Mixed] = {}
        parts = tuple(Named(name, some["train"]) for name, some in splits.items())
        weights = self.weights and {name: self.weights[name] for name in splits}
        mixed["train"] = Mixed(parts, weights) if weights else InTurn(parts)
        for split in ("val", "test"):
            parts = tuple(Named(name, some[split]) for name, some in splits.items() if split in some)
            if parts:
                mixed[split] = InTurn(parts)
        return mixed


@dataclass(frozen=True)
class Named:
    """A source's rows with its name before their ids and places."""

    name: str
    rows: Iterable[Row | BadRow]

    def __iter__(self) -> Iterator[Row | BadRow]:
        for row in self.rows:
            where = f"{self.name}/{row.where}"
            yield (
                replace(row, where=where)
                if isinstance(row, BadRow)
                else replace(row, id=f"{self.name}/{row.id}", where=where)
            )


@dataclass(frozen=True)
class InTurn:
    parts: tuple[Iterable[Row | BadRow], ...]

    def __iter__(self) -> Iterator[Row | BadRow]:
        return chain.from_iterable(self.parts)
