"""The whole extension surface: what a part must offer to take a seat.

A part is any class with the members written here; nothing is inherited and nothing is registered. One Python file and
one YAML in a folder given by `--config-dir` are a plugin. Shapes: B rows, L text tokens, N items of one modality in a
batch, T tokens of an item, E width of an encoder, D width of the language model, M tokens of the merged sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IGNORED = -100
"""The label of a token that is not to be learnt."""


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Channels:
    """Channels of a series that was scaled: `scaled * scale + mean` is in the file's own units. One for all rows."""

    names: tuple[str, ...]
    mean: np.ndarray
    """float64 [C]"""
    scale: np.ndarray
    """float64 [C]"""


@dataclass(frozen=True)
class Horizon:
    """What is due after a row's series."""

    values: np.ndarray
    """float32 [K, H] of K targets, scaled; NaN where missing"""
    inputs: Channels
    """Of the series."""
    targets: Channels


@dataclass(frozen=True)
class Row:
    """One checked row of a source. `items` has what each modality field holds: paths, pictures, channels of numbers."""

    id: str
    where: str
    """Where the row stands (`train.jsonl:17`), for messages to people."""
    messages: tuple[Message, ...] = ()
    items: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    label: str | int | float | None = None
    horizon: Horizon | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A row as numbers. `places[k] = (modality, j, p)`: item j of that modality comes before text token p."""

    id: str
    input_ids: np.ndarray
    """int32 [L]"""
    labels: np.ndarray
    """int32 [L], IGNORED where nothing is to be learnt; the first is always IGNORED."""
    places: tuple[tuple[str, int, int], ...]
    row: Row
    weight: float = 1.0
    """0: it is run along by a process that has no row of its own, and counts for nothing."""


@dataclass(frozen=True)
class Stream:
    """The items of one modality in a batch, in the order of their rows."""

    inputs: dict[str, Tensor]
    """What the encoder's forward takes, each [N, ...]. A ragged one is padded with zeros and comes with `NAME_lengths`
    [N], the sizes of its first ragged dimension; a batch that needs no padding has no such tensor."""
    places: list[tuple[int, int, int]]
    """For each of the N: row in the batch, text token it comes before, rank among its row's items of all modalities."""


@dataclass(frozen=True)
class Batch:
    """What the collator makes. It stays on the CPU: the objective moves what it needs; nothing waits for a device."""

    ids: list[str]
    input_ids: Tensor
    """int64 [B, L], padded on the right"""
    labels: Tensor
    """int64 [B, L]"""
    lengths: list[int]
    """Text tokens of each row, without padding."""
    streams: dict[str, Stream]
    rows: list[Row]
    weights: list[float]
    """Of each row; one of weight 0 counts for nothing."""


@dataclass(frozen=True)
class Tokens:
    """What an encoder or a projector gives. A padded token has mask False and is never seen by attention or pooling."""

    features: Tensor
    """[N, T, E] from an encoder, [N, T, D] from a projector"""
    mask: Tensor
    """bool [N, T]"""


@dataclass(frozen=True)
class Fused:
    """What the language model reads after fusion at the input."""

    embeddings: Tensor
    """[B, M, D]"""
    attention_mask: Tensor
    """int64 [B, M]"""
    position_ids: Tensor
    """int64 [B, M]"""
    labels: Tensor
    """int64 [B, M], on the CPU: which positions are learnt is known without asking the device."""


@dataclass(frozen=True)
class Term:
    """One part of the loss as a sum. The loop divides it by the count of the whole optimizer step on all processes."""

    sum: Tensor
    """scalar in float32 or finer, not divided by anything"""
    weight: float = 1.0


@dataclass(frozen=True)
class Step:
    terms: dict[str, Term]


@dataclass(frozen=True)
class Prediction:
    """What a model said about one held-out row. `items` are kept so that a tracker can show them."""

    id: str
    prompt: str
    answer: str
    truth: str | None
    items: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    probabilities: Mapping[str, float] | None = None
    """Of each class, the most probable first, where the answer is one of some classes."""
    numbers: Mapping[str, np.ndarray] | None = None
    """Where the answer is in numbers: by target, float64 [H] in its own units."""
    due: Mapping[str, np.ndarray] | None = None
    """What `numbers` should have been; NaN where missing."""


@dataclass(frozen=True)
class Decoding:
    """How an objective that answers in text does so."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token each time; else tokens are drawn."""
    use_cache: bool = True


class RowSource(Protocol):
    def read(self, modalities: Sequence[str]) -> Mapping[str, Sequence[Row]]:
        """Every split by name (`train`, `val`, `test`; only `train` is a must). `modalities` are the fields with items.

        Raises `Mistake` with file and line, or id, for a row that breaks the schema.
        """
        ...


Preprocess = Callable[[Any], "dict[str, Tensor]"]
"""One decoded item to tensors. It runs in loader workers, so it is small and picklable and holds no weights."""


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
    """A `torch.nn.Module`. Its constructor is given `encoder_width` and `llm_width`."""

    __call__: Callable[..., Tokens]

    def forward(self, tokens: Tokens) -> Tokens: ...


@runtime_checkable
class InputFusion(Protocol):
    """A `torch.nn.Module` that puts the items' tokens among the text's. Its constructor may ask for `llm_width`."""

    placement: Literal["front", "placeholder"]
    """Whether items come before the first user text, or where their placeholders stand."""
    __call__: Callable[..., Fused]

    def forward(
        self, text: Tensor, batch: Batch, streams: Mapping[str, Tokens], side: Literal["left", "right"]
    ) -> Fused:
        """text [B, L, D]; streams by modality, each [N, T, D]. `side` is where padding goes: left for generation."""
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
    `prepare(row)`, which brings series in their own units to how the run's source gives them (`numbers` of predictions
    are in those units); and `memory()`, JSON of what it keeps of the training rows beside weights (its classes, say).
    Checkpoints have it, and where the run is used without its rows the constructor gets it back as `memory`, which is
    None otherwise.
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


@dataclass(frozen=True)
class RunDescription:
    name: str
    folder: Path
    parameters: Mapping[str, Any]
    """The composed config, flat (`optimizer.lr`), secrets unresolved."""
    config_file: Path
    resume_key: str | None = None
    """What the tracker gave as `resume_key` in the run's earlier life."""


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


@dataclass(frozen=True)
class Ending:
    """How an engine saw its processes end; what they did themselves stands in the run's folder."""

    signal: int | None = None
    """The one that stopped the engine."""
    exit_codes: Mapping[int, int] = field(default_factory=dict)
    """By rank, of the processes that failed; a negative one is the signal that ended it."""


@dataclass(frozen=True)
class CheckpointContent:
    step: int
    """Optimizer steps done."""
    trainable: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """JSON: counters, best values, each process's part of the open line, scaler, fingerprints, memory."""


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
