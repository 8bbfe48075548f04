"""TimeSeriesExam as rows of messages and series, to be read in the file's order.

    python -m benchmarks.tsexam SOURCE TARGET [--fold K]

SOURCE has train.jsonl and val.jsonl as the set has them, TARGET gets rows that `data=jsonl` reads. A question's options
stand in the row's own order, each with the letter of its place among them in order of size or alphabet; the answer is
the letter of the right one. What the encoder is shown of a series, or of two, are twelve channels that are worked out
from it alone (`views`). Held-out rows are converted and nothing else.

Training rows come in two parts. First drills: no question of the set, but the deciles of what can be measured of
changed training series (`measures`), a digit each. Then the questions, each many times: with its options in another
order, and in every other copy with two series exchanged (and "time series 1" and "2" in the texts).

--fold K holds the K-th fifth of the training rows out as val.jsonl and leaves SOURCE/val.jsonl unread: to choose by.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np

COPIES = 32
"""Of each training question."""
DRILLS = 16
"""For each training row."""
FOLDS = 5
STEPS = 128
"""Of a view; most series have as many."""
VIEWS = 12
EPSILON = 1e-9

Question = dict[str, Any]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with train.jsonl and val.jsonl")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="choose by a fifth of train.jsonl")
    given = parser.parse_args()
    questions, held_out = splits(given.source, given.fold)
    (given.target / "series").mkdir(parents=True)
    rows = [*drilled(questions, given.target), *asked(questions, given.target)]
    write(given.target / "train.jsonl", rows)
    rows = [with_series(given.target, one["id"], exchange(one), one["id"], series_of(one)) for one in held_out]
    write(given.target / "val.jsonl", rows)


def drilled(questions: list[Question], target: Path) -> list[Row]:
    draw, drills = random.Random(1), Drills(questions)
    rows = []
    for number in range(DRILLS):
        for question in draw.sample(questions, len(questions)):
            series = changed(series_of(question), drills.draw)
            name = f"{question['id']}-drill-{number}"
            rows.append(with_series(target, name, drills.turns(series), name, series))
    return rows


def asked(questions: list[Question], target: Path) -> list[Row]:
    made = copies(questions, random.Random(0))
    return [with_series(target, one["id"], exchange(one), one["file"], series_of(one)) for one in made]


def splits(source: Path, fold: int | None) -> tuple[list[Question], list[Question]]:
    train = read(source / "train.jsonl")
    if fold is None:
        return train, read(source / "val.jsonl")
    order = sorted(train, key=lambda question: question["id"])
    random.Random(0).shuffle(order)
    held_out = order[fold::FOLDS]
    ids = {question["id"] for question in held_out}
    return [question for question in train if question["id"] not in ids], held_out


def copies(questions: list[Question], draw: random.Random) -> list[Question]:
    """The questions as they are, then over and over with their options in another order."""
    made = [{**question, "file": question["id"]} for question in questions]
    for number in range(1, COPIES):
        for question in draw.sample(questions, len(questions)):
            new = exchanged(question) if number % 2 and "ts1" in question else {**question, "file": question["id"]}
            options = draw.sample(new["options"], len(new["options"]))
            made.append({**new, "options": options, "id": f"{question['id']}-{number}"})
    return made


def exchanged(question: Question) -> Question:
    """The same question with the first series as the second."""
    return {
        **question,
        "question": renumbered(question["question"]),
        "options": [renumbered(option) for option in question["options"]],
        "answer": renumbered(question["answer"]),
        "ts1": question["ts2"],
        "ts2": question["ts1"],
        "file": f"{question['id']}-exchanged",
    }


def renumbered(text: Any) -> Any:
    """ "time series 1" as "time series 2" and the other way; an option that is a number stays."""
    if not isinstance(text, str):
        return text
    return re.sub(r"(time series )([12])", lambda found: found[1] + {"1": "2", "2": "1"}[found[2]], text, flags=re.I)


def exchange(question: Question) -> list[dict[str, str]]:
    ranked = sorted(question["options"], key=lambda option: (size(option), str(option)))
    letters = dict(zip(ranked, "ABCD", strict=False))
    listed = "\n".join(f"{letters[option]}) {option}" for option in question["options"])
    return turns(f"{question['question'].strip()}\n{listed}", letters[question["answer"]])


def size(option: Any) -> float:
    """Of an option that is a number; words come after numbers."""
    try:
        return float(str(option))
    except ValueError:
        return float("inf")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def with_series(target: Path, id: str, messages: list[dict[str, str]], name: str, series: list[np.ndarray]) -> Row:
    """The series, which copies of a question share, stands after the first question."""
    path = f"series/{name}.npy"
    if not (target / path).exists():
        np.save(target / path, np.array(views(series), dtype=np.float32))
    first = {**messages[0], "content": f"{messages[0]['content']}<series>"}
    return {"id": id, "messages": [first, *messages[1:]], "series": path}


def series_of(question: Question) -> list[np.ndarray]:
    return [np.array(question[name], dtype=float) for name in ("ts", "ts1", "ts2") if name in question]


def views(series: list[np.ndarray]) -> list[np.ndarray]:
    """[12][S]: the first series in five views, the second in five, the two held against each other in two; NaN where
    there is no second one. S is the length of the longest series, at least `STEPS`."""
    steps = max(STEPS, *map(len, series))
    seen = [view for one in series for view in views_of(one)]
    if len(series) == 2:
        length = min(map(len, series))
        first, second = (standardised(one[:length]) for one in series)
        crossed = np.correlate(first, second, "full")[length - 1 - STEPS // 2 : length - 1 + STEPS // 2] / length
        seen += [crossed, first - second]
    seen = [np.concatenate([one, np.full(steps - len(one), np.nan)]) for one in seen]
    return seen + [np.full(steps, np.nan)] * (VIEWS - len(seen))


def views_of(series: np.ndarray) -> list[np.ndarray]:
    """The series; its changes; its autocorrelation by lag; the logarithm of its spectrum; its values by size."""
    values = standardised(series)
    alike = np.correlate(values, values, "full")[len(values) - 1 :][:STEPS] / len(values)
    spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values)), 2 * STEPS))[:STEPS]
    ranked = np.sort(series)[np.linspace(0, len(series) - 1, STEPS).round().astype(int)]
    return [series, np.diff(series), alike, np.log(spectrum + 0.1), ranked]


def standardised(series: np.ndarray) -> np.ndarray:
    return (series - series.mean()) / (series.std() + EPSILON)


def measures(series: list[np.ndarray]) -> dict[str, float]:
    if len(series) == 1:
        return measures_of(series[0])
    first, second = map(measures_of, series)
    length = min(map(len, series))
    crossed = np.correlate(*(standardised(one[:length]) for one in series), "full") / length
    lags = np.arange(1 - length, length)
    crossed, lags = crossed[np.abs(lags) <= 80], lags[np.abs(lags) <= 80]
    compared = ("std", "slope", "rough", "period", "near", "entropy", "jump")
    return {
        **{f"{name} of the first": value for name, value in first.items()},
        **{f"{name} of the second": value for name, value in second.items()},
        **{f"{name} of the first over the second's": first[name] - second[name] for name in compared},
        "correlation": crossed[lags == 0][0],
        "highest correlation": crossed.max(),
        "lag": float(lags[crossed.argmax()]),
    }


def measures_of(series: np.ndarray) -> dict[str, float]:
    values, steps = standardised(series), len(series)
    time = np.linspace(-1, 1, steps)
    slope = (values * time).sum() / (time * time).sum()
    straightened = values - slope * time
    power = np.abs(np.fft.rfft(straightened * np.hanning(steps)))[1:] ** 2
    share = power / (power.sum() + EPSILON)
    changes = np.diff(values)
    quarters = np.array_split(values, 4)
    rates = [np.diff(one).std() for one in quarters]
    crossings = [(np.diff(np.sign(half - half.mean())) != 0).mean() for half in np.array_split(straightened, 2)]
    return {
        "mean": series.mean(),
        "std": np.log(series.std() + EPSILON),
        "slope": slope,
        "bend": np.polyfit(time, values, 2)[0],
        "rough": changes.std(),
        "jump": np.abs(changes).max() / (changes.std() + EPSILON),
        "where it jumps": float(np.abs(changes).argmax()) / steps,
        "period": steps / (power.argmax() + 1),
        "entropy": -(share * np.log(share + 1e-12)).sum(),
        "near": (values[1:] * values[:-1]).mean(),
        "far": (values[8:] * values[:-8]).mean(),
        "growth": np.log((quarters[3].std() + 1e-3) / (quarters[0].std() + 1e-3)),
        "growth of the changes": np.log((rates[3] + 1e-3) / (rates[0] + 1e-3)),
        "growth of the crossings": crossings[1] - crossings[0],
        "tails": (values**4).mean(),
        "lean": (changes**3).mean() / (changes.std() + EPSILON) ** 3,
    }


def changed(series: list[np.ndarray], draw: np.random.Generator) -> list[np.ndarray]:
    """Other series to measure: cut, perhaps turned round or upside down, scaled and moved, the series of a row alike;
    in half of the cases each also has a scale of its own."""
    steps = min(map(len, series))
    length = int(draw.integers(min(64, steps), steps + 1))
    start = int(draw.integers(0, steps - length + 1))
    order, sign = draw.choice([1, -1], 2)
    factor, move = sign * np.exp(draw.normal(0, 0.7)), draw.normal(0, 3)
    own = np.exp(draw.normal(0, 0.5 * (draw.random() < 0.5), len(series)))
    return [(one[start : start + length] * factor * by + move)[::order] for one, by in zip(series, own, strict=True)]


class Drills:
    """What is measured, in deciles among the training questions."""

    def __init__(self, questions: list[Question]) -> None:
        self.draw = np.random.default_rng(0)
        known: dict[str, list[float]] = {}
        for question in questions:
            for name, value in measures(series_of(question)).items():
                known.setdefault(name, []).append(value)
        self.borders = {name: np.quantile(values, np.arange(0.1, 1, 0.1)) for name, values in known.items()}

    def turns(self, series: list[np.ndarray]) -> list[dict[str, str]]:
        measured = measures(series)
        said = "".join(str(np.searchsorted(self.borders[name], value)) for name, value in measured.items())
        return turns("measured", said)


def read(path: Path) -> list[Question]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
