"""Build a dataset: any source's rows checked, deduplicated and split, and written as JSONL with a quality report."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from runner import answering, config, settings
from runner.config import Composed
from runner.data.bad_rows import BadRows
from runner.data.intake import fault_of_row
from runner.offers import check_offers
from runner.preparing.content import Content, Count, Reader, language_of
from runner.preparing.duplicates import Drop, Near, near_questions, redundant
from runner.preparing.fields import check_known, kinds_of, times_of
from runner.preparing.leaks import Leak, Ties, find_leaks, ties_of, together
from runner.preparing.quality import quality_of
from runner.preparing.splitting import drawn_splits, groups_of, splits_by_time
from runner.preparing.tables import markdown, tables_of
from runner.preparing.writing import check_output, placed, write_json, write_jsonl, write_manifest, write_split
from runner.protocols import IGNORED, BadRow, Mistake, Row, RowSource
from runner.seats import ITEM_FIELDS, mixed_seat, named
from runner.settings import Prepare
from runner.terminal import PLAIN_WIDTH, print_table

ORDER = ("train", "val", "test")
VERSIONS = ("multimodal-runner", "datasketch", "py3langid", "numpy", "pillow")


def prepare(composed: Composed) -> dict[str, Any]:
    """Raises `Mistake` for whatever config, rows or the output have wrong; then nothing is written."""
    given = config.section(composed.tree["prepare"], Prepare)
    output = Path(given.output).expanduser()
    check_output(
        output, given.overwrite, {key: composed.tree["data"].get(key) for key in ("path", "val_path", "files")}
    )
    source: RowSource = mixed_seat(composed, "data", settings.Data, streaming=False)
    check_offers(source, "data", RowSource)
    read, bad = read_contents(composed, source, given)
    every = [one for some in read.values() for one in some]
    near = None if given.near_duplicates is None else near_questions(every, given.near_duplicates)
    splits, drops, leaks = sorted_out(read, near, given)
    report = quality_of(splits, near, leaks, drops, bad, given.stratify_by)
    with placed(output) as folder:
        for split, contents in splits.items():
            write_split(folder, split, contents, given.items)
        write_dropped(folder / "dropped.jsonl", drops)
        write_json(folder / "quality.json", report)
        (folder / "quality.md").write_text(markdown(report), encoding="utf-8")
        write_manifest(folder, list(splits), made_of(composed, source, report))
    show_report(report, output)
    return {"output": str(output), **report}


def read_contents(
    composed: Composed, source: RowSource, given: Prepare
) -> tuple[dict[str, list[Content]], list[BadRows]]:
    """By split, in the order train, val, test; and of each which rows could not be used."""
    count, modalities = counter(composed)
    reader = Reader(given.compare, given.context, count, language_of if given.languages else None)
    shared = config.section(composed.tree["data"], settings.Data)
    contents: dict[str, list[Content]] = {}
    bad = []
    with named("data", composed.tree["data"]):
        splits = source.read(sorted({*ITEM_FIELDS, *modalities}))
        for split in sorted(splits, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
            contents[split] = []
            kept = BadRows(split, shared.on_bad_row, shared.max_bad_share)
            for _ in kept.sound(checked(splits[split], reader, contents[split])):
                pass
            bad.append(kept)
    if not contents.get("train"):
        raise Mistake("data: there is no row to train on. Give another data.path.")
    return contents, bad


def counter(composed: Composed) -> tuple[Count | None, Sequence[str]]:
    """How tokens are counted, where the config has a language model, and the modalities that have an encoder."""
    if not composed.tree.get("llm"):
        return None, [name for name, node in (composed.tree.get("encoder") or {}).items() if node is not None]
    frame = answering.bare_frame(composed)

    def count(row: Row) -> tuple[int, int]:
        example = frame.example(row)
        return len(example.input_ids), int((example.labels != IGNORED).sum())

    return count, frame.modalities


def checked(rows: Iterable[Row | BadRow], reader: Reader, contents: list[Content]) -> Iterator[Row | BadRow]:
    """The rows; those that can be used are also put into `contents`, and the others come as a `BadRow`."""
    seen: dict[str, str] = {}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        wrong = fault_of_row(row)
        if wrong:
            raise Mistake(f"data: read gave a row {wrong}. See Row in runner/protocols.py.")
        if row.horizon is not None:
            raise Mistake(
                "prepare: these rows are windows of a series with what is due after it, for which a line of JSONL has "
                "no field. Train on the CSV itself (data=csv_series), which data.borders splits by time."
            )
        try:
            if row.id in seen:
                raise Mistake(f"has the id `{row.id}`, which {seen[row.id]} has already.")
            content = reader.read(row)
        except Mistake as mistake:
            yield BadRow(row.where, str(mistake))
            continue
        seen[row.id] = row.where
        contents.append(content)
        yield row


def sorted_out(
    read: Mapping[str, Sequence[Content]], near: Near | None, given: Prepare
) -> tuple[dict[str, list[Content]], list[Drop], list[Leak]]:
    """The rows of each split of the dataset, those that are left out, and the leaks that are left."""
    every = [one for some in read.values() for one in some]
    pooled, fixed = what_is_drawn(read, given)
    drops: list[Drop] = []
    if given.duplicates == "drop":
        for split, some in (("train" if fixed else "source", pooled), *fixed.items()):
            drops += redundant(some, near, split)
    gone = {id(drop.content) for drop in drops}
    left = [one for one in pooled if id(one) not in gone]
    for name in given.context:
        check_known(every, name, "context")
    if given.group_by is not None:
        kinds_of(every, given.group_by, "group_by")
    ties = ties_of(near, given.shared_items == "together", given.group_by)
    splits = draw(left, ties, given, [split for split in fixed]) if pooled else {}
    splits |= {split: [one for one in some if id(one) not in gone] for split, some in fixed.items()}
    splits = {split: splits[split] for split in (*ORDER, *splits) if split in splits}
    leaks = list(find_leaks(splits, ties))
    if leaks and given.leaks == "error":
        raise Mistake(told(leaks))
    if leaks and given.leaks == "drop":
        out = {id(one): Drop(one, leak.splits[0], "leak", leak.later.row.id) for leak in leaks for one in leak.earlier}
        drops += out.values()
        splits = {split: [one for one in some if id(one) not in out] for split, some in splits.items()}
        leaks = []
        if not splits["train"]:
            raise Mistake("prepare.leaks=drop leaves no row to train on: each is in a later split too.")
    return splits, drops, leaks


def what_is_drawn(
    read: Mapping[str, Sequence[Content]], given: Prepare
) -> tuple[list[Content], dict[str, Sequence[Content]]]:
    """The rows that are split here, and the source's splits that stay. Raises `Mistake` for settings that would say
    nothing."""
    if given.splits == "drawn":
        return [one for some in read.values() for one in some], {}
    if "val" not in read:
        return list(read["train"]), {split: some for split, some in read.items() if split != "train"}
    for key in ("stratify_by", "time_by"):
        if getattr(given, key) is not None:
            raise Mistake(
                f"prepare.{key}={getattr(given, key)}: the source has its own splits ({', '.join(read)}), which stay. "
                "Set prepare.splits=drawn to split all its rows anew."
            )
    return [], dict(read)


def draw(contents: Sequence[Content], ties: Ties, given: Prepare, there: Sequence[str]) -> dict[str, list[Content]]:
    """`there`: splits that the source has, which are not drawn."""
    asked = {"test": given.test_share, "val": given.val_share}
    shares = {split: share for split, share in asked.items() if split not in there and share > 0}
    groups = groups_of(len(contents), together(contents, ties))
    ids = [one.row.id for one in contents]
    if given.time_by is not None:
        placed = splits_by_time(groups, ids, times_of(contents, given.time_by, "time_by"), shares)
    else:
        strata = kinds_of(contents, given.stratify_by, "stratify_by") if given.stratify_by is not None else None
        placed = drawn_splits(groups, ids, shares, given.split_seed, strata)
    empty = [split for split in ("train", *shares) if not placed[split]]
    if empty:
        largest = max(map(len, groups), default=0)
        raise Mistake(
            f"prepare: the {empty[0]} split would be empty. There are {len(contents):,} rows in {len(groups):,} groups "
            f"that stay together, {largest:,} of them in the largest. Give more rows, set prepare.{empty[0]}_share=0, "
            "or let less keep rows together (prepare.near_duplicates, prepare.compare, prepare.shared_items, "
            "prepare.group_by)."
        )
    return {split: [contents[row] for row in rows] for split, rows in placed.items()}


def told(leaks: Sequence[Leak]) -> str:
    first = leaks[0]
    pairs = {pair: sum(leak.splits == pair for leak in leaks) for pair in dict.fromkeys(leak.splits for leak in leaks)}
    counts = ", ".join(f"{count:,} of {later} with {earlier}" for (earlier, later), count in pairs.items())
    return (
        f"prepare.leaks=error: rows share what should be in one split alone: {counts}; {first.later.row.where} (id "
        f"{first.later.row.id}) and {first.earlier[0].row.where} (id {first.earlier[0].row.id}), for one. Mend them, "
        "drop the rows of the earlier split (prepare.leaks=drop), or have them reported (prepare.leaks=report)."
    )


def write_dropped(file: Path, drops: Sequence[Drop]) -> None:
    """What was left out, a line a row: its id, where it stood, why, and the row that stays."""
    lines = [
        {"id": one.content.row.id, "where": one.content.row.where, "split": one.split, "reason": one.reason,
         "same_as": one.same_as}
        for one in drops
    ]  # fmt: skip
    write_jsonl(file, lines)


def made_of(composed: Composed, source: RowSource, report: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset was made of, for its manifest: the same for the same rows, settings and versions."""
    fingerprint = getattr(source, "fingerprint", None)
    return {
        "splits": {split: one["rows"] for split, one in report["splits"].items()},
        "read": report["read"],
        "dropped": {reason: one["rows"] for reason, one in report["dropped"].items()},
        "source": {
            "target": composed.tree["data"]["_target_"],
            "fingerprint": fingerprint() if fingerprint is not None else None,
        },
        "config": composed.saved,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def show_report(report: Mapping[str, Any], output: Path) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console = Console(soft_wrap=True, highlight=False, width=PLAIN_WIDTH)
    for table in tables_of(report):
        print_table(console, table.title, table.columns, table.rows, table.right)
    if report["leaks"]:
        console.print("There are leaks: prepare.leaks=drop leaves their rows of the earlier split out.", style="yellow")
    console.print(f"Dataset: {output}", markup=False)
    console.print(f"Report: {output / 'quality.md'}", markup=False)
    console.print(f"To train on it: data=jsonl data.path={output}", markup=False)
