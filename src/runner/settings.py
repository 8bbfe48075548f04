"""The plain nodes of a config, as dataclasses: their fields and ranges are the schema that a config is held against.

Defaults stand in conf/ alone, so no field has one here. Quick to import: nothing heavy is needed to check a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Format = Literal["openai", "sharegpt", "alpaca", "prompt_completion", "question_answer"]
"""How conversations are written in a source of rows: runner/data/formats.py."""


@dataclass(frozen=True)
class Part:
    """A leaf of train.parts: `train.parts.encoder.image` is the module that the model has under that name."""

    lr: Annotated[float, Gt(0)] | None
    """Where its learning rate starts; the schedule is the run's. null: optimizer.lr."""
    from_step: CountOrZero
    """Frozen before this optimizer step."""
    until_step: Count | None
    """Frozen from this one on; null: never."""


@dataclass(frozen=True)
class Train:
    max_steps: Count | None
    epochs: Count | None
    batch_size: Count
    """Samples of one optimizer step, over all processes."""
    micro_batch_size: Count | None
    """Samples of one forward of one process; null: batch_size / processes."""
    micro_batch_tokens: Count | None
    """Text tokens of one forward of one process, padding with them, instead of a number of rows."""
    clip_norm: Annotated[float, Gt(0)] | None
    log_every: Count
    eval_every: Count | None
    log_ids: bool
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    max_skipped_steps: Count
    """Steps in a row with a non-finite gradient after which the run stops."""
    parts: Mapping[str, Any]
    """`Part`s in the tree of the model's own names."""


@dataclass(frozen=True)
class Evaluation:
    batch_size: Count | None
    """Rows of one forward; null: the micro-batch size."""
    predict_rows: CountOrZero | None
    """Held-out rows that are predicted (an answer generated) for exact match and kin; null: all, 0: none."""
    samples: CountOrZero
    """Held-out questions shown at the end and sent to the tracker."""


@dataclass(frozen=True)
class Data:
    """What every `data` option shares; the rest of the node belongs to its row source."""

    on_bad_row: Literal["error", "skip"]
    max_bad_share: Annotated[float, Ge(0), Le(1)]
    """Of a split's rows; with skip, more bad ones than that end the run all the same."""
    learn: Literal["all", "last"]
    """Which of the assistant's turns are learnt."""
    system: Literal["template", "into_user"]
    """Where the system's text goes: as the chat template writes it, or in front of the first user's."""
    max_length: Count | None
    """Text tokens of a row, template included; null: whatever the language model takes."""
    max_prompt_length: Count | None
    """Text tokens before the first learnt answer; null: no limit of its own."""
    over_length: Literal["error", "drop", "truncate_prompt", "truncate", "split"]
    order: Literal["shuffled", "grouped", "file"]
    streaming: bool
    """Rows are read as they are needed, not before."""
    buffer: Count
    """Rows of a stream that are shuffled together."""
    packing: bool
    """Rows of a micro-batch one after another instead of padded side by side."""
    workers: CountOrZero
    """Loader processes; 0 loads in the training process."""
    worker_timeout: Count | None
    """Seconds after which a loader process that gives nothing is told with its row, and the run ends; null: never."""
    cache: str | None
    """Folder for what is made of rows once; null: nothing is kept."""


@dataclass(frozen=True)
class Precision:
    compute: Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Cluster:
    """What every `cluster` option shares; the rest of the node belongs to the engine that starts the processes."""

    num_processes: Count
    threads: Count | None
    """CPU threads of a process; null: all there are, shared among the processes."""
    device: Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Checkpoint:
    """What every `checkpoint` option shares; the rest of the node belongs to its checkpointer."""

    every: Count | None
    """Optimizer steps between checkpoints; null: only at evaluations and at the end."""
    keep_last: Annotated[int, Ge(2)]
    keep_best: CountOrZero
    monitor: str
    mode: Literal["min", "max"]


@dataclass(frozen=True)
class EarlyStopping:
    patience: Count | None
    """Evaluations without an improvement of checkpoint.monitor; null: off."""
    min_delta: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Show:
    part: Literal["rows", "batch", "parameters"]
    split: str
    """Of part=rows; a batch is of the rows that are trained on."""
    rows: Count
    """Of part=rows."""
    step: CountOrZero
    """Of part=batch: the optimizer step, counted from 0."""
    html: str | None
    """Of part=batch: a file to write as a page; null: in the terminal."""


@dataclass(frozen=True)
class Evaluate:
    split: str


Anew = Mapping[str, Any] | None
"""Keys of a trained run's own config, set anew; held against its schema once they stand in it."""


@dataclass(frozen=True)
class Used:
    """The top of the config of a verb that uses a trained run."""

    run: str
    at: Literal["best", "last"] | CountOrZero
    precision: Anew
    cluster: Anew
    llm: Anew
    lora: Anew
    encoder: Anew


@dataclass(frozen=True)
class UsedToEvaluate(Used):
    data: Anew
    evaluation: Anew
    model: Anew


@dataclass(frozen=True)
class UsedToGenerate(Used):
    prompt: str | None
    image: str | list[str] | None
    audio: str | list[str] | None
    text: str | list[str] | None
    series: str | list[Any] | None
    input: str | None
    output: str | None
    overwrite: bool
    max_new_tokens: Count | None
    batch_size: Count | None
    temperature: Annotated[float, Ge(0)]
    use_cache: bool
    seed: Annotated[int, Ge(0), Le(2**31 - 1)]


@dataclass(frozen=True)
class Run:
    """The scalars at the top of a config."""

    name: Annotated[str, "a folder name"]
    seed: Annotated[int, Ge(0), Le(2**31 - 1)]
    resume: str | None
    force_resume: bool
