"""`runner generate`: what a trained run answers to one prompt, or to each row of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.config import Composed
from runner.data.bad_rows import BadRows
from runner.data.intake import fault_of_files
from runner.data.shards import read_lines, shard_of
from runner.data.strict_json import parse
from runner.evaluate_run import likeliest, listed_numbers
from runner.predictor import Predictor, answer_of, questions, row_of
from runner.protocols import BadRow, Mistake, Prediction, Row
from runner.run_folder import write_lines
from runner.seats import ITEM_FIELDS, build_node
from runner.trained import Trained, open_trained

JSONL = "runner.data.jsonl.Jsonl"
ONE_ROW = ("prompt", "image", "audio", "text", "series")
ANSWER = "answer"


def generate(composed: Composed) -> dict[str, Any]:
    """Prints one answer, or writes `output`. Raises `Mistake` for what is asked wrongly, before weights are loaded."""
    asked = composed.tree
    fields = {name: asked[name] for name in ONE_ROW if asked[name] is not None}
    if asked["input"] is None:
        check_one_row(asked, fields)
        run = open_trained(asked, composed.plugin_folders)
        row = row_of(run, fields, "the command line")
        questions(run, [row])
        (prediction,) = Predictor(run, asked).predict([row])
        print(in_full(prediction))
        for name, share in likeliest(prediction.probabilities or {}).items():
            print(f"{share:7.4f}  {name}")
        return {ANSWER: answer_of(prediction)}
    output = check_files(asked, fields)
    run = open_trained(asked, composed.plugin_folders)
    records, rows = read_questions(run, Path(asked["input"]))
    questions(run, rows)
    predictor = Predictor(run, asked)
    write_lines(output, answered(records, rows, predictor))
    print(f"Answers: {output} ({len(rows):,} rows)")
    return {"output": str(output), "rows": len(rows)}


def check_one_row(asked: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    if asked["output"] is not None:
        raise Mistake("output: it goes with input=FILE.jsonl; the answer to a prompt is printed.")
    if not fields:
        raise Mistake("There is nothing to answer. Give prompt=TEXT, an item (image=FILE), or input=FILE.jsonl.")


def check_files(asked: Mapping[str, Any], fields: Mapping[str, Any]) -> Path:
    """The file to write."""
    if fields:
        raise Mistake(f"input: a file of rows is asked one by one; take {', '.join(fields)} away, or input.")
    if asked["output"] is None:
        raise Mistake("output is missing: name the file that the answers go to, output=FILE.jsonl.")
    source, output = Path(asked["input"]), Path(asked["output"])
    if not source.is_file():
        raise Mistake(f"input: there is no file {source}.")
    if output.exists() and output.resolve() == source.resolve():
        raise Mistake(f"output: {output} is the input itself. Name another file.")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise Mistake(f"output: {output} is no file in a folder that is there. Name another, or make its folder.")
    if output.exists() and not asked["overwrite"]:
        raise Mistake(f"output: {output} is there already. Set overwrite=true, or name another file.")
    if not os.access(output.absolute().parent, os.W_OK):
        raise Mistake(f"output: {output.absolute().parent} cannot be written. Name another place.")
    return output


def read_questions(run: Trained, file: Path) -> tuple[list[dict[str, Any]], Sequence[Row]]:
    """The file's objects and their rows, read as strictly as those that are trained on and by the same columns."""
    node = run.composed.tree["data"]
    records = records_of(file)
    seen = {key for record in records for key in record}
    # Of the run's columns those that are there: an answer, which may be missing, is no mistake here.
    fields = {ours: there(theirs, seen) for ours, theirs in (node.get("fields") or {}).items()}
    extra = list(node.get("extra") or ())
    source = build_node(
        run.composed,
        "input",
        {
            **{"_target_": JSONL, "path": str(file), "val_path": None},
            **{"fields": fields, "extra": extra, "format": node.get("format")},
        },
    )
    rows = sound_rows(source.read(sorted({*ITEM_FIELDS, *run.frame.modalities}))["train"])
    if any(ANSWER in record for record in records):
        raise Mistake(f"input: {file} has the key `{ANSWER}` already, which the output is to have. Rename it.")
    return records, rows


def records_of(file: Path) -> list[dict[str, Any]]:
    """As data/jsonl.py takes a file apart; a line that holds no record is told when the rows are read."""
    records = []
    for _, line in read_lines(shard_of(file, file.parent, ())):
        if line is not None and line.strip():
            with suppress(ValueError):
                records.append(parse(line.decode("utf-8")))
    return [one for one in records if isinstance(one, dict)]


def there(key: str | list[str] | None, seen: Collection[str]) -> str | list[str] | None:
    """What of data.fields a file has."""
    if isinstance(key, list):
        return [one for one in key if one in seen] or None
    return key if key in seen else None


def sound_rows(rows: Iterable[Row | BadRow]) -> list[Row]:
    """Each of them, or a `Mistake`: a question that is left out would have no answer in its place."""
    bad = BadRows("input", "error", 0)
    try:
        return list(bad.sound(checked(rows)))
    except Mistake as mistake:
        if not bad.reasons:
            raise
        raise Mistake("\n".join([f"input: {bad.counted()} cannot be used.", *bad.lines()])) from mistake


def checked(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """A row whose id another has already, or whose item's file cannot be decoded, is a bad one."""
    places: dict[str, str] = {}
    for row in rows:
        if isinstance(row, Row):
            reason = fault_of_files(row)
            if row.id in places:
                reason = f"has the id `{row.id}`, which {places[row.id]} has already."
            if reason:
                yield BadRow(row.where, reason)
                continue
            places[row.id] = row.where
        yield row


def in_full(prediction: Prediction) -> str:
    """The answer; of a forecast every number, a line a target."""
    answer = answer_of(prediction)
    if not isinstance(answer, Mapping):
        return prediction.answer
    return "\n".join(f"{name}: {' '.join(map(str, some))}" for name, some in listed_numbers(answer).items())


def answered(records: Sequence[dict[str, Any]], rows: Sequence[Row], predictor: Predictor) -> Iterator[str]:
    for record, prediction in zip(records, predictor.predict(rows), strict=True):
        answer = answer_of(prediction)
        added: dict[str, Any] = {ANSWER: listed_numbers(answer) if isinstance(answer, Mapping) else answer}
        if prediction.probabilities is not None:
            added["probabilities"] = likeliest(prediction.probabilities)
        yield json.dumps(record | added, ensure_ascii=False)
