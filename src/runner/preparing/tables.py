"""A quality report for a person: tables, in a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.preparing.leaks import KINDS

LISTED = 20
"""Labels and languages of a table."""
REASONS = {
    "duplicate": "say the same as another row",
    "near_duplicate": "nearly the same question, the same answer",
    "leak": "leak into a later split",
}
MEASURES = {
    "turns": "turns", "characters": "characters", "words": "words", "tokens": "tokens",
    "supervised": "supervised tokens",
}  # fmt: skip
UNITS = {
    "width": "width, pixels", "height": "height, pixels", "rate": "rate, Hz", "seconds": "length, seconds",
    "steps": "length, steps", "missing": "missing, share",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()
    """Columns that hold numbers."""


def tables_of(report: Mapping[str, Any]) -> Iterator[Table]:
    """Those that have something in them."""
    for table in (
        rows_table(report), lengths_table(report), bad_table(report), dropped_table(report), repeats_table(report),
        leaks_table(report),
        counts_table("Labels", "label", {split: one.get("rows", {}) for split, one in report["labels"].items()}),
        label_numbers(report), counts_table(f"By {report['strata']['field']}", "", report["strata"]["rows"]),
        counts_table("Languages", "language", report["languages"]), items_table(report),
    ):  # fmt: skip
        if table.rows:
            yield table


def rows_table(report: Mapping[str, Any]) -> Table:
    total = sum(one["rows"] for one in report["splits"].values())
    rows = [[split, f"{one['rows']:,}", f"{one['rows'] / total:.1%}"] for split, one in report["splits"].items()]
    return Table("Rows", ["split", "rows", "share"], rows, ["rows", "share"])


def lengths_table(report: Mapping[str, Any]) -> Table:
    ranks = ("min", "p5", "p50", "p95", "max", "total")
    rows = [
        [split, MEASURES[name], *(f"{one[name][rank]:,}" for rank in ranks)]
        for split, one in report["splits"].items()
        for name in MEASURES
        if name in one and one[name]["max"]
    ]
    return Table("Lengths", ["split", "of a row", *ranks], rows, ranks)


def bad_table(report: Mapping[str, Any]) -> Table:
    rows = [[one["split"], f"{one['rows']:,}", one["first"], one["reason"]] for one in report["bad_rows"]]
    return Table("Left out: rows that cannot be used", ["split", "rows", "first", "reason"], rows, ["rows"])


def dropped_table(report: Mapping[str, Any]) -> Table:
    rows = [[REASONS[reason], f"{one['rows']:,}", pairs(one["examples"])] for reason, one in report["dropped"].items()]
    return Table(
        "Left out: rows that repeat others", ["because they", "rows", "for example (and what stays)"], rows, ["rows"]
    )


def repeats_table(report: Mapping[str, Any]) -> Table:
    found = report["duplicates"]
    differing, near = found["same_question_other_answer"], found["near_duplicate"]
    rows = [
        ["the same row", found["duplicate"], ""],
        ["nearly the same question", near["rows"], ", ".join(near["examples"])],
        ["the same question, another answer or label", differing["rows"], pairs(differing["examples"])],
    ]
    empty = [(split, one) for split, one in report["empty_answers"].items() if one["rows"]]
    rows += [[f"no answer, or a blank one ({split})", one["rows"], ", ".join(one["examples"])] for split, one in empty]
    said = [[what, f"{count:,}", examples] for what, count, examples in rows if count]
    return Table("Rows that stay, to be looked at", ["they have", "rows", "for example"], said, ["rows"])


def leaks_table(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            " and ".join(one["splits"]),
            KINDS[one["kind"]],
            *(f"{count:,}" for count in one["rows"]),
            pairs(one["examples"]),
        ]
        for one in report["leaks"]
    ]
    columns = ["splits", "share", "rows of the first", "of the second", "for example"]
    return Table("Leaks between splits", columns, rows, columns[2:4])


def counts_table(title: str, column: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Rows of each split by a value, the most frequent first, with its share of the split."""
    total: dict[str, int] = {}
    for some in counts.values():
        for value, count in some.items():
            total[value] = total.get(value, 0) + count
    names = sorted(total, key=lambda value: (-total[value], value))
    rows = [
        [
            name,
            *(
                f"{some.get(name, 0):,} ({some.get(name, 0) / max(1, sum(some.values())):.1%})"
                for some in counts.values()
            ),
        ]
        for name in names[:LISTED]
    ]
    if len(names) > LISTED:
        rows.append([f"and {len(names) - LISTED:,} more", *("" for _ in counts)])
    return Table(title, [column, *counts], rows, list(counts))


def label_numbers(report: Mapping[str, Any]) -> Table:
    ranks = ("min", "p5", "p50", "p95", "max", "mean")
    rows = [
        [split, *(f"{one['numbers'][rank]:g}" for rank in ranks)]
        for split, one in report["labels"].items()
        if "numbers" in one
    ]
    return Table("Labels", ["split", *ranks], rows, ranks)


def items_table(report: Mapping[str, Any]) -> Table:
    rows = []
    for split, modalities in report["items"].items():
        for modality, one in modalities.items():
            ranges = [
                f"{UNITS.get(name, name)} {low:g}" + (f" to {high:g}" if high != low else "")
                for name, (low, high) in {
                    name: (value["min"], value["max"]) for name, value in one.items() if isinstance(value, dict)
                }.items()
                if name != "missing" or high
            ]
            rows.append([split, modality, f"{one['items']:,}", f"{one['different']:,}", "; ".join(ranges)])
    return Table("Items", ["split", "modality", "items", "different", "sizes"], rows, ["items", "different"])


def pairs(examples: Sequence[Sequence[str]]) -> str:
    return ", ".join(" = ".join(some) for some in examples[:2])


def markdown(report: Mapping[str, Any]) -> str:
    """The tables as a page. Every number is in quality.json too."""
    pieces = ["# Quality of this dataset\n"]
    for table in tables_of(report):
        rule = ["---:" if column in table.right else "---" for column in table.columns]
        lines = [table.columns, rule, *table.rows]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
        )
        pieces.append(f"## {table.title}\n\n{body}\n")
    return "\n".join(pieces)
