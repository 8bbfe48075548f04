"""`runner evaluate`: metrics of a trained run on a split or another file, as the run would have printed them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from runner import config
from runner.announce import computing, describe, endless, loss_table
from runner.config import Composed
from runner.data.intake import Split
from runner.data.length import check_answers_fit
from runner.evaluate import evaluate
from runner.peers import Peers
from runner.protocols import Example, Mistake, Prediction
from runner.run_folder import write_json, write_lines
from runner.seats import read_splits
from runner.settings import Evaluate
from runner.signals import StopRequest
from runner.spelling import did_you_mean
from runner.terminal import listed, print_table, sample_table
from runner.trained import Trained, open_trained


def evaluate_run(composed: Composed) -> dict[str, Any]:
    """Raises `Mistake` for a run, a checkpoint or rows that are not there or do not belong to the model."""
    asked = composed.tree
    console = Console(soft_wrap=True, highlight=False)
    run = open_trained(asked, composed.plugin_folders)
    asked_split = config.section(asked["evaluate"], Evaluate).split
    name, taken = chosen_split(run, asked_split, (asked["data"] or {}).get("path"))
    examples: Sequence[Example] = taken.examples
    prompts = run.frame.prompts(examples[: run.settings.evaluation.predict_rows])
    check_answers_fit(prompts, run.composed.tree["model"].get("max_new_tokens"), run.frame.takes)
    folder = run.folder / "evaluations"
    folder.mkdir(exist_ok=True)  # before the work, so that a folder that cannot be written is told now

    objective = run.load()
    prepare, check_row = (getattr(objective, name, None) for name in ("prepare", "check_row"))
    if prepare is not None:
        examples = [replace(one, row=prepare(one.row)) for one in examples]
        prompts = run.frame.prompts(examples[: run.settings.evaluation.predict_rows])
    if check_row is not None:
        for one in examples:
            check_row(one.row)
    content = run.chosen.content
    for line in (
        f"Run: {run.folder}, step {content.step} ({run.chosen.why}).",
        f"Data, {name}: {describe(taken)}",
        computing(run.precision),
        "",
    ):
        console.print(line, markup=False)
    table = loss_table({name: taken.lengths})
    if table:
        print_table(console, *table)
    for sentence in endless({name: taken.lengths}):
        console.print(sentence, markup=False, style="yellow")
    peers = Peers(run.accelerator, StopRequest())
    metrics, predictions = evaluate(
        objective, examples, prompts, run.frame.collate(), run.batch_size, run.accelerator, peers
    )
    named = {f"{name}/{metric}": value for metric, value in metrics.items()}
    console.print(f"step {content.step}  {listed(named)}", markup=False)
    samples = predictions[: run.settings.evaluation.samples]
    if samples:
        print_table(console, *sample_table(samples))
    summary = {
        "metrics": named,
        "at": asked["at"],
        "step": content.step,
        "rows": len(examples),
        "predicted": len(predictions),
        "data": {"split": name, **({"path": asked["data"]["path"]} if (asked["data"] or {}).get("path") else {})},
        "precision": run.precision.as_dict(),
        **getattr(objective, "details", lambda _: {})(predictions),
    }
    write_json(folder / f"{name}.json", summary)
    write_lines(folder / f"{name}.jsonl", map(line_of, predictions))
    console.print(f"Metrics: {folder / f'{name}.json'}", markup=False)
    console.print(
        f"Predictions: {folder / f'{name}.jsonl'} ({len(predictions):,} of {len(examples):,} rows)", markup=False
    )
    return summary


def chosen_split(run: Trained, split: str, path: Any) -> tuple[str, Split]:
    """A split by its name, or the rows of a file or folder that was named, by that one's."""
    named_by_path = False

    def choose(names: Sequence[str]) -> Sequence[str]:
        nonlocal named_by_path
        named_by_path = path is not None and len(names) == 1
        if split not in names and not named_by_path:
            hint = did_you_mean(split, names, otherwise=".")
            raise Mistake(f"evaluate.split={split}: the data has {', '.join(names)}{hint}")
        return names if named_by_path else [split]

    ((name, taken),) = read_splits(run.composed, run.frame, choose).items()
    if not taken.examples:
        raise Mistake(f"evaluate.split={split}: it has no row. See what was left out, or give another data.path.")
    if named_by_path:
        place = Path(os.path.abspath(path) if isinstance(path, str) else "files")  # `.` has no name of its own
        name = place.name if place.is_dir() else place.stem
    return name, taken


def line_of(prediction: Prediction) -> str:
    line: dict[str, Any] = {
        "id": prediction.id,
        "prompt": prediction.prompt,
        "answer": prediction.answer,
        "truth": prediction.truth,
    }
    if prediction.probabilities is not None:
        line["probabilities"] = likeliest(prediction.probabilities)
    if prediction.numbers is not None:
        line["numbers"] = listed_numbers(prediction.numbers)
    return json.dumps(line, ensure_ascii=False)


def listed_numbers(numbers: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """By target, with the seven digits that float32 has."""
    return {name: [float(f"{one:.7g}") for one in some] for name, some in numbers.items()}


def likeliest(probabilities: Mapping[str, float], count: int = 5) -> dict[str, float]:
    """Of the classes, which come in this order."""
    return dict(list(probabilities.items())[:count])
