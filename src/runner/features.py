"""Features of frozen encoders, computed before the first step and kept on disk (data.cache_features).

An encoder that does not train gives the same tokens for an item in every epoch. Here each different item of the train
and val rows goes through it once; from then on the collator reads what it gave. Shapes: N items of a batch, T tokens of
an item, E width.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from runner import cache
from runner.config import Composed
from runner.data.collate import Collate, stack
from runner.data.kept_features import KeptFeatures, NoContentError, content_of, key_of, write_shard
from runner.evaluate import evaluation_mode
from runner.feature_key import of_encoder, of_tensors
from runner.feature_trial import Trial, encoded_alone, tried, why_not
from runner.feed import loaded_by
from runner.model_parts import frozen_at
from runner.protocols import Example, Mistake, Tokens

if TYPE_CHECKING:
    from runner.session import Session

KIND = "features"
SHARD_BYTES = 1 << 26
"""Of a shard's features, about: what a kill while one is written costs is computed again."""
SPLITS = ("train", "val")


def collate_with_features(session: Session, composed: Composed, check_stop: Callable[[], None]) -> Collate:
    """The run's collator, which reads what frozen encoders gave for their items; encoders that must run go on as they
    do, and why is said.

    `check_stop` is called now and then, by all processes as often; what it raises ends the work. Raises `Mistake` where
    the disk has no room.
    """
    parts = session.parts
    objective: Any = parts.objective
    say = session.terminal.say
    if not type(objective).__module__.startswith("runner.models."):
        say(f"data.cache_features: {type(objective).__name__} may ask its encoders itself, so they run in every step.")
        return parts.collate
    if not parts.collate.preprocess:
        say("data.cache_features: there is no encoder, so there is nothing to keep.")
    kept = {}
    for modality in parts.collate.preprocess:
        encoder = objective.encoder[modality]
        with (
            evaluation_mode(objective),
            frozen_at(session.progress.step, parts.model_parts),
            session.accelerator.autocast(),
        ):
            made = Making(session, composed, modality, encoder, check_stop).features()
        if made is not None:
            kept[modality] = made
    return replace(parts.collate, kept=kept)


@dataclass(frozen=True)
class Place:
    """Where in the rows an item stands."""

    split: str
    row: int
    item: int


@dataclass(frozen=True)
class Catalogue:
    """The items of one modality: each key with its content, each different content with a place where it stands."""

    contents: Mapping[bytes, bytes]
    """By key."""
    places: Mapping[str, Mapping[bytes, Place]]
    """By split, by content: what no earlier split has."""

    @property
    def size(self) -> int:
        return sum(map(len, self.places.values()))


@dataclass(frozen=True)
class Making:
    """The features of one modality of a run, made where they are not kept yet."""

    session: Session
    composed: Composed
    modality: str
    encoder: nn.Module
    check_stop: Callable[[], None]

    @property
    def name(self) -> str:
        return f"encoder.{self.modality}"

    @property
    def batch_size(self) -> int:
        """Items that are encoded together: bits depend on how many."""
        return self.session.parts.settings.micro_batch_size

    @property
    def device(self) -> torch.device:
        return self.session.accelerator.device

    def features(self) -> KeptFeatures | None:
        """None where the encoder must run in every step; why is said. Raises `Mistake` where the disk has no room."""
        session, began = self.session, time.monotonic()
        reason = why_not(self.encoder, session.parts.model_parts, session.progress.step, session.total_steps)
        try:
            places = {} if reason else self.places()
        except NoContentError as error:
            reason = f"an item is a {error}, whose content cannot be told from another's"
        if not reason and not places:
            reason = "no row has an item for it"
        if reason:
            self.bypass(reason)
            return None
        first = [place for _, place in zip(range(self.batch_size), places.values(), strict=False)]
        trial = tried(partial(self.load, first), self.encode, self.batch_size, self.device)
        # One that draws from a generator of its own may be noticed by one process and not by another.
        random = next((one for one in session.peers.gather(trial.random) if one is not None), None)
        if random is not None:
            self.bypass(random)
            return None
        if trial.unlike is not None:
            session.terminal.say(f"{self.name}: {trial.unlike}")
        catalogue = self.catalogue(places)
        shards = list(self.shards(catalogue, trial))
        # The processes must agree on what is missing, and none may begin before all have looked.
        absent = session.peers.gather([k for k, one in enumerate(shards) if not cache.is_whole(self.place_of(one))])[0]
        missing = [shards[k] for k in absent]
        self.check_room(missing, trial)
        self.make(missing)
        folders = [self.keep(shard) for shard in shards]
        where = {content: (s, k) for s, shard in enumerate(shards) for k, content in enumerate(shard.contents)}
        computed = sum(len(shard.contents) for shard in missing)
        took = f"{computed:,} computed in {time.monotonic() - began:.1f} s" if computed else "all there already"
        session.terminal.say(
            f"{self.name}: features of {catalogue.size:,} items are kept in {folders[0].parent}, "
            f"{size(trial.item_bytes * catalogue.size)}; {took}."
        )
        return KeptFeatures.of(self.modality, folders, {key: where[one] for key, one in catalogue.contents.items()})

    def bypass(self, reason: str) -> None:
        self.session.terminal.say(f"{self.name} runs in every step, its features are not kept: {reason}.")

    @property
    def examples(self) -> Mapping[str, Sequence[Example]]:
        return {name: split.examples for name, split in self.session.parts.splits.items()}

    def places(self) -> dict[bytes, Place]:
        """By key, in the order of the rows, the first place of each item."""
        places: dict[bytes, Place] = {}
        for split in SPLITS:
            for row, example in enumerate(self.examples.get(split, ())):
                for modality, item, _ in example.places:
                    if modality == self.modality:
                        key = key_of(modality, example.row.items[modality][item])
                        places.setdefault(key, Place(split, row, item))
        return places

    def catalogue(self, places: Mapping[bytes, Place]) -> Catalogue:
        """Files are read here, each by one process of the run."""
        peers, keys = self.session.peers, list(places)
        own = {key: self.content(places[key]) for key in keys[peers.rank :: peers.processes]}
        contents = {key: content for part in peers.gather(own) for key, content in part.items()}
        known: dict[bytes, Place] = {}
        for key in keys:
            known.setdefault(contents[key], places[key])
        apart = {split: {one: place for one, place in known.items() if place.split == split} for split in SPLITS}
        return Catalogue(contents, apart)

    def content(self, place: Place) -> bytes:
        example = self.examples[place.split][place.row]
        try:
            return content_of(self.modality, example.row.items[self.modality][place.item])
        except OSError as error:
            where = f"{example.row.where} (id {example.id})"
            raise Mistake(f"{where}: `{self.modality}` item {place.item + 1} cannot be read: {error}") from error

    def shards(self, catalogue: Catalogue, trial: Trial) -> Iterator[Shard]:
        """Rows that are added to a split change its last shard alone. An item of each is preprocessed every time: what
        its file or its arguments do not say of the preprocessing, this shows."""
        batches = max(1, SHARD_BYTES // (trial.item_bytes * self.batch_size))
        step = batches * self.batch_size
        config = self.composed.tree["encoder"][self.modality]
        depends = of_encoder(self.encoder, config, self.session.precision.as_dict(), self.device, self.batch_size)
        for places in catalogue.places.values():
            contents = list(places)
            for start in range(0, len(contents), step):
                own = contents[start : start + step]
                (sample,) = self.load([places[own[0]]])
                made_of = depends | {"sample": of_tensors(sample), "items": [one.hex() for one in own]}
                yield Shard(own, [places[one] for one in own], made_of)

    def place_of(self, shard: Shard) -> Path:
        return cache.place_of(self.root, KIND, shard.made_of)

    def keep(self, shard: Shard) -> Path:
        return cache.keep(self.root, KIND, shard.made_of, partial(self.write, shard))

    @property
    def root(self) -> str:
        root = self.session.parts.settings.data.cache
        assert root is not None
        return root

    def check_room(self, missing: Sequence[Shard], trial: Trial) -> None:
        count = sum(len(shard.contents) for shard in missing)
        root = Path(self.root).expanduser().absolute()
        there = next(one for one in (root, *root.parents) if one.exists())
        free = shutil.disk_usage(there).free
        if count * trial.item_bytes > free:
            raise Mistake(
                f"data.cache={self.root} has {size(free)} free, and the features of {count:,} items of {self.name} "
                f"need {size(count * trial.item_bytes)}. Name another folder, let the encoder give fewer tokens "
                "(pool=mean, where it has that), or set data.cache_features=false."
            )

    def make(self, missing: Sequence[Shard]) -> None:
        """Each process of the run makes its share of the shards."""
        peers = self.session.peers
        for first in range(0, len(missing), peers.processes):
            for shard in missing[first + peers.rank : first + peers.rank + 1]:
                self.keep(shard)
            self.check_stop()

    def write(self, shard: Shard, folder: Path) -> None:
        write_shard(folder, encoded_alone(self.load(shard.places), self.encode, self.batch_size))

    def load(self, places: Sequence[Place]) -> Iterator[dict[str, Tensor]]:
        """What the preprocess makes of the items, in order: in this process, or in loader workers where there are."""
        parts = self.session.parts
        workers = parts.settings.data.workers
        items = ItemSet(parts.collate, self.examples, self.modality, places)
        workers = workers if len(places) > self.batch_size else 0
        yield from loaded_by(self.session, items, workers, batch_size=None)

    def encode(self, inputs: Sequence[Mapping[str, Tensor]]) -> Tokens:
        """As a step does it with these items."""
        there = {key: one.to(self.device) for key, one in stack(self.modality, inputs).items()}
        tokens: Tokens = self.encoder(**there)
        return tokens


@dataclass(frozen=True)
class Shard:
    """Some items whose features go into one folder."""

    contents: Sequence[bytes]
    places: Sequence[Place]
    made_of: Mapping[str, Any]


class ItemSet(Dataset[dict[str, Tensor]]):
    """Items after their preprocess, by number."""

    def __init__(
        self,
        collate: Collate,
        examples: Mapping[str, Sequence[Example]],
        modality: str,
        places: Sequence[Place],
    ) -> None:
        self.collate, self.examples, self.modality, self.places = collate, examples, modality, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        place = self.places[number]
        return self.collate.item(self.modality, self.examples[place.split][place.row], place.item)


def size(count: int) -> str:
    """`3.4 GB`"""
    power = next((one for one in (3, 2, 1) if count >= 1000**one), 0)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"
