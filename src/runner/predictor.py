"""A trained run that answers: `runner.Predictor.from_run(FOLDER)(prompt="...", image="a.png")`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from runner.config import compose
from runner.data.chat import prompt_of
from runner.data.cutting import cut_at_end, prompt_length, without_user_text
from runner.data.decode import decode
from runner.data.length import LengthPolicy, Told, check_answers_fit
from runner.data.rows import check_item, check_messages
from runner.data.series_files import read_columns
from runner.evaluate import evaluation_mode
from runner.models.initialization import reseed
from runner.protocols import IGNORED, Decoding, Example, Message, Mistake, Objective, Prediction, Row
from runner.spelling import did_you_mean
from runner.trained import Trained, open_trained

OF_A_ROW = ("prompt", "messages")
UNCUT = {
    "truncate_prompt": "only users' texts are cut, which are too short for that",
    "truncate": "users' texts lose their ends to data.max_prompt_length alone",
}
"""Of each data.over_length that cuts a question at all, why one may still be too long."""


class Label(str):
    """What a classifier answers: the class, as text, with the probability of each, the most probable first."""

    probabilities: Mapping[str, float]

    def __new__(cls, answer: str, probabilities: Mapping[str, float]) -> Label:
        label = super().__new__(cls, answer)
        label.probabilities = probabilities
        return label


Answer = str | float | Mapping[str, np.ndarray]


class Predictor:
    """Call it with a row's fields for one answer, or with a list of such dicts for a list of them.

    prompt: the question; or messages, a conversation that the user ends. image, audio, series, text and modalities of
    one's own: an item or a list of items: paths, PIL pictures, channels of numbers, arrays; texts for `text`.
    """

    def __init__(self, run: Trained, asked: Mapping[str, Any]) -> None:
        """`asked`: the tree of `runner generate`, whose options hold."""
        self.run = run
        self.step = run.chosen.content.step
        self.objective = run.load()
        self.batch_size = asked["batch_size"] or run.batch_size
        self._collate = run.frame.collate()
        own: Decoding | None = getattr(self.objective, "decoding", None)
        self.decoding = decoding_of(asked, own)
        if self.decoding is not None:
            self.objective.decoding = self.decoding  # type: ignore[attr-defined]
        if asked["temperature"]:
            reseed(run.accelerator.device, asked["seed"], "generate")

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        at: str | int = "best",
        overrides: Sequence[str] = (),
        config_dir: str | Path | None = None,
    ) -> Predictor:
        """`overrides` are those of `runner generate`: `["precision=bf16", "max_new_tokens=20"]`; `config_dir` is the
        folder of your own parts that the run was trained with. Raises `runner.protocols.Mistake` with a sentence."""
        composed = compose("generate", [f"run={run}", f"at={at}", *overrides], Path(config_dir) if config_dir else None)
        return cls(open_trained(composed.tree, composed.plugin_folders), composed.tree)

    @overload
    def __call__(self, rows: None = None, /, **fields: Any) -> Answer: ...

    @overload
    def __call__(self, rows: Sequence[Mapping[str, Any]], /) -> list[Answer]: ...

    def __call__(self, rows: Sequence[Mapping[str, Any]] | None = None, /, **fields: Any) -> Answer | list[Answer]:
        """Text; of a classifier a `Label`; of one number that number; of a forecaster, by target, float64 [H], series
        going in and numbers coming out in their own units."""
        if rows is not None and fields:
            raise Mistake("Give one row's fields by name, or a list of rows, not both.")
        given = [fields] if rows is None else rows
        asked = [row_of(self.run, one, f"row {number}") for number, one in enumerate(given, start=1)]
        answers = [answer_of(one) for one in self.predict(asked)]
        return answers[0] if rows is None else answers

    def predict(self, rows: Sequence[Row]) -> Iterator[Prediction]:
        """In the order of the rows, as soon as their batch is done."""
        prompts = questions(self.run, in_their_own_way(self.objective, rows))
        check_answers_fit(
            prompts, self.decoding.max_new_tokens if self.decoding else None, self.run.frame.takes, in_training=False
        )
        for start in range(0, len(prompts), self.batch_size):
            batch = self._collate(prompts[start : start + self.batch_size])
            with evaluation_mode(self.objective), self.run.accelerator.autocast():  # type: ignore[arg-type]
                predictions = self.objective.predict(batch)
            yield from predictions


def decoding_of(asked: Mapping[str, Any], own: Decoding | None) -> Decoding | None:
    """Raises `Mistake` for what only a model that writes can do."""
    if own is not None:
        length = asked["max_new_tokens"] or own.max_new_tokens
        return Decoding(length, asked["temperature"], asked["use_cache"])
    plain = {"max_new_tokens": None, "temperature": 0.0, "use_cache": True}
    foreign = [name for name, value in plain.items() if asked[name] != value]
    if foreign:
        raise Mistake(f"{', '.join(foreign)}: this run does not answer in text, so there is nothing to set.")
    return None


def questions(run: Trained, rows: Sequence[Row]) -> list[Example]:
    """What the model reads of the rows, as long as the run's `data` allows: an answer that stands at their end is left
    out. Raises `Mistake` for one that is too long and may not be cut."""
    examples = [run.frame.example(row) for row in rows]
    fitting = run.frame.fitting(run.settings.data)
    return run.frame.prompts(within_limits(examples, fitting) if isinstance(fitting, LengthPolicy) else examples)


def within_limits(examples: Sequence[Example], policy: LengthPolicy) -> list[Example]:
    """Each of them, cut as training and evaluate cut it. Raises `Mistake` where that would leave a question out, take
    it apart or lose its end."""
    cut = [within(example, policy) for example in examples]
    refused = Told()
    for example, left in zip(examples, cut, strict=True):
        if left is None:
            length, asked = len(example.input_ids), len(prompt_of(example).input_ids)
            counts = length > asked and policy.over_length == "truncate_prompt"
            refused.add(example, f"{length} tokens with its answer" if counts else f"{asked} tokens")
    if refused.count:
        why = UNCUT.get(policy.over_length, "no question is cut")
        raise Mistake(
            f"{refused.count:,} of {len(cut):,} questions too long: {refused}. This run reads rows within "
            f"{policy.limits()}, and by its data.over_length={policy.over_length} {why}. Shorten what is asked, or ask "
            "a run that was trained with a higher limit."
        )
    return [one for one in cut if one is not None]


def within(example: Example, policy: LengthPolicy) -> Example | None:
    """What is left of one; None where it must be refused. An answer of its own counts where it does in evaluate and
    can be made room for, by truncate_prompt; elsewhere what is asked is held against the limits alone."""
    if policy.chat.learn == "last" and example.row.messages[-1].role == "user":
        # The answer that is due is the one that would be learnt: all before it is its prompt, earlier answers too.
        example = replace(example, labels=np.full_like(example.labels, IGNORED))
    asked = example if policy.over_length == "truncate_prompt" else prompt_of(example)
    limit, prompt_limit = policy.max_length, policy.max_prompt_length
    over = limit is not None and len(asked.input_ids) > limit
    over_prompt = prompt_limit is not None and prompt_length(example) > prompt_limit
    if not over and not over_prompt:
        return example
    if policy.over_length not in UNCUT:
        return None
    encoded = replace(policy.chat.encode(example.row), example=example)
    if policy.over_length == "truncate_prompt":
        return without_user_text(encoded, limit, prompt_limit)
    left = cut_at_end(encoded, None, prompt_limit)
    return left if left is not None and (limit is None or len(prompt_of(left).input_ids) <= limit) else None


def answer_of(prediction: Prediction) -> Answer:
    if prediction.numbers is not None:
        numbers = list(prediction.numbers.values())
        return float(numbers[0][0]) if len(numbers) == len(numbers[0]) == 1 else prediction.numbers
    if prediction.probabilities is None:
        return prediction.answer
    return Label(prediction.answer, prediction.probabilities)


def in_their_own_way(objective: Objective, rows: Sequence[Row]) -> Sequence[Row]:
    """Rows as the run's source would have given them: a forecaster's series scaled as its training rows were."""
    prepare, columns = getattr(objective, "prepare", None), getattr(objective, "columns", None)
    if prepare is None:
        return rows
    return [prepare(replace(row, items={**row.items, **series_of(row, columns)})) for row in rows]


def series_of(row: Row, columns: Sequence[str] | None) -> dict[str, tuple[Any, ...]]:
    """Its series decoded; of a CSV file with a header the columns of these names."""
    read = [
        read_columns(item, columns)
        if columns and isinstance(item, Path) and item.suffix.lower() == ".csv"
        else decode("series", item)
        for item in row.items.get("series", ())
    ]
    return {"series": tuple(read)} if read else {}


def row_of(run: Trained, fields: Mapping[str, Any], where: str) -> Row:
    """A row out of its fields; those that are None are absent. Raises `Mistake` for what the run cannot take."""
    given = {name: value for name, value in fields.items() if value is not None}
    modalities = run.frame.modalities
    for name in given:
        if name not in (*OF_A_ROW, *modalities):
            known = ", ".join(modalities) or "none"
            hint = did_you_mean(name, (*OF_A_ROW, *modalities))
            raise Mistake(f"{name}: this run has no encoder for it{hint} It has encoders for: {known}.")
    unread = [name for name in OF_A_ROW if name in given]
    if unread and not run.composed.tree.get("llm") and "text" not in modalities:
        raise Mistake(f"{unread[0]}: this run reads no text. It has encoders for: {', '.join(modalities)}.")
    if "prompt" in given and "messages" in given:
        raise Mistake("prompt and messages are both given; a prompt is the one user's turn of a conversation.")
    messages: tuple[Message, ...] = ()
    if "messages" in given:
        messages = check_messages(given["messages"])
    elif "prompt" in given:
        if not isinstance(given["prompt"], str):
            raise Mistake(f"prompt: {given['prompt']!r} is no text.")
        messages = (Message("user", given["prompt"]),)
    elif run.composed.tree.get("llm"):
        raise Mistake("prompt is missing: this run answers questions. Give prompt=TEXT.")
    items = {name: tuple(items_of(name, given[name])) for name in modalities if name in given}
    return Row(id=where.replace(" ", "-"), where=where, messages=messages, items={n: i for n, i in items.items() if i})


def items_of(modality: str, value: Any) -> Iterator[Any]:
    """One item or several; a list of channels of numbers is one."""
    several = isinstance(value, list | tuple) and value and not is_channels(value) and not is_sound(modality, value)
    for item in value if several else (value,):
        yield checked(modality, item)


def is_channels(value: Any) -> bool:
    return isinstance(value[0], list) and not any(isinstance(one, list) for one in value[0])


def is_sound(modality: str, value: Any) -> bool:
    """(samples, rate)"""
    return modality == "audio" and isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int)


def checked(modality: str, item: Any) -> Any:
    """An item as rows hold it; a path may lead anywhere. Pictures, arrays and the like are the encoder's to judge."""
    if isinstance(item, torch.Tensor):
        return item.cpu().numpy()
    if isinstance(item, Path) or (isinstance(item, str) and modality != "text"):
        file = Path(item).expanduser()
        if not file.exists():
            raise Mistake(f"{modality}: there is no file {item}.")
        item, folder = file.name, file.absolute().parent
    elif isinstance(item, str | list | bool | int | float):
        folder = Path()
    else:
        return item
    try:
        return check_item(modality, item, folder)
    except Mistake as mistake:
        raise Mistake(f"{modality}: {mistake}") from None
