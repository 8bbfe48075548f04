"""The part that sits in a seat of a config, built; and what every kind of objective comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from runner import config, settings
from runner.config import Composed
from runner.data.collate import Collate
from runner.data.intake import Fitting, Split, take_in
from runner.data.stream import open_stream
from runner.models.initialization import seeded
from runner.offers import check_offers, check_read
from runner.protocols import (
    Checkpointer,
    Encoder,
    Example,
    Fault,
    Mistake,
    Objective,
    Projector,
    Row,
    RowSource,
    Stopped,
)
from runner.schema import projectors_of
from runner.signatures import RUNTIME_ARGUMENTS
from runner.targets import asked_by

ITEM_FIELDS = ("image", "audio", "series")
"""The modalities of the row schema, whose fields hold items also where the model has no encoder for them."""


@dataclass(frozen=True)
class Learner:
    """An objective and what it learns from."""

    objective: Objective
    splits: Mapping[str, Split]
    """Rows as numbers."""
    prompts: list[Example]
    """The val rows that are predicted, without what is to be found out."""
    collate: Collate
    memory: Mapping[str, Any]
    """JSON that checkpoints keep: with it the model can be built where these rows are not."""
    notes: tuple[str, ...]
    """What a person should hear of it."""


class Frame(Protocol):
    """What a kind of objective builds before its weights: enough to say what becomes of a row."""

    @property
    def modalities(self) -> list[str]:
        """Those that have an encoder, in the config's order."""
        ...

    @property
    def takes(self) -> int | None:
        """Text tokens that the model takes, if it reads any and says how many."""
        ...

    def example(self, row: Row) -> Example:
        """Raises `Mistake` for a row that the model could not read."""
        ...

    def fitting(self, given: settings.Data) -> Fitting:
        """What becomes of an example that is too long, by data.over_length."""
        ...

    def reads(self) -> Mapping[str, Any]:
        """JSON of all that shapes an example beside its row and the settings of data."""
        ...

    def prompts(self, examples: Iterable[Example]) -> list[Example]:
        """Without what is to be found out."""
        ...

    def collate(self) -> Collate: ...


def seat(composed: Composed, name: str, **runtime: Any) -> Any:
    """The part that sits in a seat (`encoder.image`), or None when nothing does."""
    node: Any = composed.tree
    for key in name.split("."):
        node = (node or {}).get(key)
    if node is None:
        return None
    return build_node(composed, name, node, **runtime)


def build_node(composed: Composed, name: str, node: Mapping[str, Any], **runtime: Any) -> Any:
    """Raises `Fault` with the node's place in the config where its constructor fails."""
    with named(name, node):
        return config.build(node, composed.plugin_folders, **runtime)


@contextmanager
def named(name: str, node: Mapping[str, Any]) -> Iterator[None]:
    """Say of what a part raises which part it was."""
    try:
        yield
    except (Mistake, Fault, Stopped):
        raise
    except Exception as error:
        raise Fault(f"{name}: {node['_target_']} failed: {type(error).__name__}: {error}") from error


def mixed_seat(composed: Composed, name: str, shared: type, **runtime: Any) -> Any:
    """The part of a seat whose node also holds settings that all its options share."""
    return build_node(composed, name, config.own_arguments(composed.tree[name], shared), **runtime)


def check_asks(composed: Composed, name: str, given: Iterable[str], instead: str) -> None:
    """Raises `Mistake` where the part of a seat is for another kind of objective: it asks for what is not `given`."""
    node = composed.tree.get(name)
    if node is None:
        return
    foreign = asked_by(node, composed.plugin_folders) & set(RUNTIME_ARGUMENTS) - set(given)
    if foreign:
        names = ", ".join(sorted(foreign))
        raise Mistake(f"{name}: {node['_target_']} asks for {names}, which it is not given here. Set {instead}.")


def build_encoders(composed: Composed) -> dict[str, Encoder]:
    """By modality, in the config's order. Raises `Mistake` for a part that lacks what an encoder must offer."""
    encoders = {}
    for modality, node in (composed.tree.get("encoder") or {}).items():
        if node is None:
            continue
        name = f"encoder.{modality}"
        with seeded(composed.tree["seed"], name):
            encoder = seat(composed, name)
        check_offers(encoder, name, Encoder)
        encoders[modality] = encoder
    return encoders


def build_projectors(composed: Composed, widths: Mapping[str, int], width: int) -> dict[str, Projector]:
    """By modality, from what comes in, `widths`, to the `width` that they give; one for all where it is to be shared.

    Raises `Mistake` for a modality without one, and for widths that differ where one is to be shared.
    """
    node, apart = projectors_of(composed.tree)
    projectors: dict[str, Projector] = {}
    shared: str | None = None  # the modality whose projector the later ones take
    for modality, encoder_width in widths.items():
        if shared is not None and modality not in apart:
            if encoder_width != widths[shared]:
                raise Mistake(
                    f"projector.shared=true: encoder.{shared} gives tokens of width {widths[shared]} and "
                    f"encoder.{modality} of {encoder_width}. Set it to false, or choose encoders of one width."
                )
            projectors[modality] = projectors[shared]
            continue
        own, name = (apart[modality], f"projector.{modality}") if modality in apart else (node, "projector")
        if own is None:
            raise Mistake(f"encoder.{modality} has no projector. Set projector=mlp or projector/{modality}=mlp.")
        with seeded(composed.tree["seed"], f"projector.{modality}"):
            projector = build_node(composed, name, own, encoder_width=encoder_width, llm_width=width)
        check_offers(projector, name, Projector)
        projectors[modality] = projector
        if modality not in apart and getattr(projector, "shared", False):
            shared = modality
    return projectors


def read_splits(
    composed: Composed, frame: Frame, choose: Callable[[Sequence[str]], Sequence[str]] = lambda names: names
) -> dict[str, Split]:
    """The examples of the config's source, of those of its splits that are chosen.

    Raises `Mistake` for rows that cannot be used.
    """
    given = config.section(composed.tree["data"], settings.Data)
    source: RowSource = mixed_seat(composed, "data", settings.Data, streaming=given.streaming)
    check_offers(source, "data", RowSource)
    with named("data", composed.tree["data"]):
        splits = source.read(sorted({*ITEM_FIELDS, *frame.modalities}))
        check_read(splits)
        own = getattr(source, "fingerprint", lambda: None)()
        taken = {}
        for split in choose(list(splits)):
            if given.streaming and split == "train":
                taken[split] = open_stream(split, splits[split], frame, given, composed.tree["seed"], own)
            else:
                in_memory = getattr(source, "in_memory", False)
                taken[split] = take_in(split, splits[split], frame, given, own, in_memory)
    if "train" in taken and not taken["train"].examples:
        raise Mistake("data: there is no row to train on. See what was left out, or give another data.path.")
    return taken


def held_out(splits: Mapping[str, Split]) -> Sequence[Example]:
    return splits["val"].examples if "val" in splits else ()


def build_checkpointer(composed: Composed) -> Checkpointer:
    checkpointer: Checkpointer = mixed_seat(composed, "checkpoint", settings.Checkpoint)
    check_offers(checkpointer, "checkpoint", Checkpointer)
    return checkpointer
