"""What travels through a run, from a row of a source to a checkpoint: plain frozen records.

Import them from `runner.protocols`, where everything that a part needs is found. Shapes: B rows, L text tokens, N items
of one modality in a batch, T tokens of an item, E width of an encoder, D width of the language model, M merged tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
class BadRow:
    """What a source gives in the place of a row that breaks the schema: data.on_bad_row says what becomes of it."""

    where: str
    """Where it stands (`train.jsonl:17`)."""
    reason: str
    """A sentence without its subject (`has the key `id` twice.`), the same for rows with the same fault."""


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
    kept: Tokens | None = None
    """What the encoder gave for them before training (data.cache_features), on the CPU; then `inputs` is empty."""

    def pin_memory(self) -> Stream:
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})


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
    packed: bool = False
    """Whether the language model is to learn from the rows as one sequence; the tensors here are the same."""

    def pin_memory(self) -> Batch:
        """In memory that a GPU copies from while the program goes on; torch's loader calls it."""
        streams = {name: stream.pin_memory() for name, stream in self.streams.items()}
        return replace(self, input_ids=self.input_ids.pin_memory(), labels=self.labels.pin_memory(), streams=streams)


@dataclass(frozen=True)
class Tokens:
    """What an encoder or a projector gives. A padded token has mask False and is never seen by attention or pooling."""

    features: Tensor
    """[N, T, E] from an encoder, [N, T, D] from a projector"""
    mask: Tensor
    """bool [N, T]"""
    grid: tuple[int, int] | None = None
    """Rows and columns of the picture that the last rows * columns tokens lie on, in reading order; class and register
    tokens come before. None where tokens lie on no such grid."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Parts of the loss of the projector's own: float [N] each, a value an item."""

    def mean(self) -> Tensor:
        """[N, E], over the tokens that are no padding; zeros where there is none."""
        there = self.mask.unsqueeze(-1)
        return (self.features * there).sum(1) / there.sum(1).clamp(min=1)


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
    input_ids: Tensor
    """int64 [B, M], on the CPU: the text's ids, IGNORED where an item or padding stands. Some language models embed
    tokens in every layer, by their ids."""


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
    label: str | None = None
    """The row's, where the answer is a text that should name it."""
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


@dataclass(frozen=True)
class RunDescription:
    name: str
    folder: Path
    parameters: Mapping[str, Any]
    """The composed config, flat (`optimizer.lr`), secrets unresolved."""
    config_file: Path
    resume_key: str | None = None
    """What the tracker gave as `resume_key` in the run's earlier life."""


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
