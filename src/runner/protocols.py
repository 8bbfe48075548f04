"""The whole extension surface: what a part must offer to take a seat.

A part is any class with the members written here; nothing is inherited and nothing is registered. One Python file and
one YAML in a folder given by `--config-dir` are a plugin. Shapes: B rows, L text tokens, N items of one modality in a
batch, T tokens of an item, E width of an encoder, D width of the language model, M tokens of the merged sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from runner.records import (
    IGNORED,
    BadRow,
    Batch,
    Channels,
    CheckpointContent,
    Decoding,
    Ending,
    Example,
    Fused,
    Horizon,
    Message,
    Prediction,
    Row,
    RunDescription,
    Step,
    Stream,
    Term,
    Tokens,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BadRow", "Batch", "Channels", "CheckpointContent", "Checkpointer", "Decoding", "Encoder", "Ending", "Engine",
    "Example", "Fault", "Fused", "Horizon", "IGNORED", "InputFusion", "LAUNCHER", "LabelObjective", "Message",
    "Mistake", "Objective", "PooledFusion", "Prediction", "Preprocess", "Projector", "Row", "RowSource",
    "RunDescription", "Schedule", "Step", "Stopped", "Stream", "Term", "Tokens", "Tracker",
]  # fmt: skip


class RowSource(Protocol):
    """Where rows come from.

    It may also have `fingerprint()`: JSON that is another whenever the rows would be (its files' names, sizes and
    times, say). Then what is made of the rows is kept on disk and not made again, and an item must be something that
    JSON can hold: a path, a text, channels of numbers. With `in_memory = True` they may be anything, and what is made
    of the rows is remembered by the process, for the next job of a sweep.
    """

    def read(self, modalities: Sequence[str]) -> Mapping[str, Iterable[Row | BadRow]]:
        """Every split by name (`train`, `val`, `test`; only `train` is a must). `modalities` are the fields with items.

        Each can be gone through several times, and gives the same rows in the same order; one that reads as it is gone
        through holds no more than a row. A row that breaks the schema is a `BadRow` in its place. Raises `Mistake` for
        what makes all rows unreadable: a missing file, a column that is nowhere.
        """
        ...


Preprocess = Callable[[Any], "dict[str, Tensor]"]
"""One decoded item to tensors. It runs in loader workers, so it is small and picklable and holds no weights.

One that is random has `is_random`, True: features of its items are not kept (data.cache_features)."""


@runtime_checkable
class Encoder(Protocol):
    """A `torch.nn.Module`; `forward(**inputs)` takes what `preprocess` gives, stacked to [N, ...], to `Tokens`."""

    width: int
    """E"""
    preprocess: Preprocess

    __call__: Callable[..., Tokens]

    def forward(self, **inputs: Tensor) -> Tokens: ...


@runtime_checkable
class Projector(Protocol):
    """A `torch.nn.Module`. Its constructor is given `encoder_width` and `llm_width`.

    It may also have `shared`: whether one is for all modalities; and `term_weights`, by name the weights of parts of
    the loss that are its own. Then the `terms` of the tokens that it gives have the same names, each a value an item;
    an objective with projectors adds the mean over all modalities' items, as a term of that name.
    """

    __call__: Callable[..., Tokens]

    def forward(self, tokens: Tokens) -> Tokens: ...


@runtime_checkable
class InputFusion(Protocol):
    """A `torch.nn.Module` that puts the items' tokens among the text's. Its constructor may ask for `llm_width`
    and `modalities`, those that have an encoder.

    It may also have `attach(llm)`, called once before the first forward with the language model, LoRA on it: its
    `embedding` [V, D], and its `layers`, to put hooks on. What then works inside the model gives the text alone.

    It may have `packs`: whether rows can be laid one after another once they are fused (data.packing), each with its
    positions from 0. Without it, one with `attach` is refused there, and any other taken.
    """

    placement: Literal["front", "placeholder"]
    """Whether items come before the first user text, or where their placeholders stand."""
    __call__: Callable[..., Fused]

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D]; streams by modality, each [N, T, D]. `side` is where padding goes: left for generation.

        `Fused` has the labels and ids of the batch where its text went; `runner.fusion.splice` does all of it."""
        ...


@runtime_checkable
class PooledFusion(Protocol):
    """A `torch.nn.Module` for objectives without a language model. Its constructor is given `widths`: E by modality."""

    width: int
    """H"""
    __call__: Callable[..., Tensor]

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """By modality, vectors [B, E], zeros where `present` bool [B] is False; gives [B, H]."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A `torch.nn.Module`: what is learnt. The loop knows nothing else about the model.

    It may also have `decoding: Decoding`, which `predict` goes by; `details(predictions)`, a mapping for summary.json;
    `prepare(row)`, which brings rows that are not the run's own to its scale (`numbers` of predictions are in the rows'
    own units), and `columns`, the names of a series' channels for it; `check_rows(split, rows)`, which raises `Mistake`
    for a split that it could not learn from; and `memory()`, JSON of what it keeps of the training rows beside weights
    (its classes, say). Checkpoints have it, and where the run is used without its rows the constructor gets it back as
    `memory`, which is None otherwise. With `packs` true it goes by `Batch.packed`; without, data.packing is refused.
    """

    metric_names: tuple[str, ...]
    """What `metrics` may give, so that a wrong checkpoint.monitor is told before training."""
    splits_exactly: bool
    """The same loss and gradient for any split of a batch into micro-batches and processes (dropout 0)."""
    __call__: Callable[..., Step]

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each term's sum will be divided by, known before the forward pass: the same names for every batch."""
        ...

    def forward(self, batch: Batch) -> Step: ...

    def predict(self, batch: Batch) -> list[Prediction]: ...

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Metrics that are not sums; they see each held-out row once."""
        ...


@runtime_checkable
class LabelObjective(Objective, Protocol):
    """An objective without a language model. Its constructor may ask for `rows`, those that are trained on; where
    a trained run is used they are None, and it has its `memory`."""

    def check_row(self, row: Row) -> None:
        """Raises `Mistake` for a row of any split that it could not learn from or be tested on."""
        ...


class Tracker(Protocol):
    """Where a run is shown. metrics.jsonl is the truth that trackers copy; a tracker that fails cannot hurt a run."""

    @property
    def resume_key(self) -> str | None:
        """What `start` needs to go on with the same record after a resume; kept in checkpoints."""
        ...

    def start(self, run: RunDescription) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_samples(self, predictions: Sequence[Prediction], step: int) -> None: ...

    def finish(self, status: Literal["finished", "failed", "stopped"]) -> None: ...


class Schedule(Protocol):
    def __call__(self, step: int, total_steps: int) -> float:
        """The factor on the peak learning rate at optimizer step `step`, counted from 0: a pure function."""
        ...


class Checkpointer(Protocol):
    """Keeps checkpoints so that a visible one is whole."""

    def save(self, folder: Path, checkpoint: CheckpointContent) -> Path: ...

    def newest(self, folder: Path) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint of a run folder, and a sentence for each newer one that was passed over."""
        ...

    def load(self, path: Path, optimizer: bool = True) -> CheckpointContent:
        """`optimizer=False` leaves its state out, unread. Raises `Mistake` when the checkpoint is not whole."""
        ...

    def state(self, path: Path) -> Mapping[str, Any]:
        """A checkpoint's `state` alone, read without its weights; empty where it cannot be read."""
        ...

    def steps(self, folder: Path) -> list[int]:
        """The steps of the visible checkpoints."""
        ...

    def place(self, folder: Path, step: int) -> Path:
        """Where a run has the checkpoint of a step: a folder or a file, best inside the run's own folder, as only such
        a one can be given to `resume` by its own name."""
        ...

    def prune(self, folder: Path, keep: Iterable[int]) -> None:
        """Delete the checkpoints whose step is not in `keep`."""
        ...

    def cut_back(self, folder: Path, step: int) -> None:
        """Delete what a run that goes on after `step` must not find: later checkpoints, broken ones, leftovers."""
        ...


LAUNCHER = "RUNNER_LAUNCHER"
"""Environment variable with the process id of the launcher, where a run's processes are its children."""


class Engine(Protocol):
    """How a run's processes come to be (`cluster`)."""

    def launch(self, folder: Path, processes: int, threads: int) -> Ending:
        """Run `python -m runner.worker FOLDER` `processes` times, with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
        MASTER_ADDR and MASTER_PORT set and `threads` CPU threads each; come back when all have ended."""
        ...


class Mistake(Exception):
    """Something the user can mend: bad config or bad data. Its text is one or more whole sentences; exit code 2."""

    exit_code = 2


class Fault(Exception):
    """Something went wrong that is not the user's mistake, told in a sentence; exit code 1."""

    exit_code = 1


class Stopped(Exception):
    """The run was stopped by a signal, saved and resumable; exit code 128 + signal."""

    def __init__(self, signal: int, sentence: str, saved: bool = True) -> None:
        super().__init__(sentence)
        self.signal = signal
        self.saved = saved
        """False where there was nothing to save yet."""
