"""Features of frozen encoders, kept: a run with them is the run without, and nothing wrong is ever taken for them."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import test_encoders_image
import test_encoders_series
import test_encoders_text
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from test_exactness import fingerprint, lines_of
from test_zoo import LOADED, words_of
from test_zoo import rows as zoo_rows
from torch import Tensor, nn

import runner
from runner import cache, features, training
from runner.data.kept_features import ItemTokens, KeptFeatures, Shard, content_of, key_of, write_shard
from runner.encoders.hf_vision import HfVision
from runner.feature_key import described, of_encoder
from runner.feature_trial import encoded_alone, tried, why_not
from runner.protocols import Mistake, Tokens
from runner.run_folder import read_status

__all__ = ["zoo_rows"]
COMMON = [
    "data=jsonl", "tracker=none", "train.batch_size=4", "train.micro_batch_size=2", "train.log_every=1",
    "schedule=constant", "optimizer.lr=1e-2", "train.max_steps=5", "train.log_ids=true", "evaluation.batch_size=2",
]  # fmt: skip
LLM = [
    "llm.hidden_size=16", "llm.intermediate_size=32", "llm.layers=1", "llm.heads=2", "model.max_new_tokens=3",
    "evaluation.predict_rows=2", "checkpoint.monitor=val/loss", "checkpoint.mode=min",
]  # fmt: skip
PATCH = ["encoder/image=patch", "encoder.image.hidden_size=16", "encoder.image.layers=1", "encoder.image.heads=2"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 rows to train on, so that the last step of an epoch has 3, and 4 to evaluate: pictures (rows 1 and 9 the same
    one), texts of two lengths, series of two lengths, a label, a question."""
    return write(tmp_path_factory.mktemp("rows"), range(15))


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and every fourth has no picture."""
    return write(tmp_path_factory.mktemp("gaps"), [k for k in range(15) if k % 4 != 3])


def write(folder: Path, pictured: Collection[int]) -> Path:
    lines = []
    for k in range(15):
        test_encoders_image.picture(k).save(folder / f"{k}.png")
        turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "ab"[k % 2]}]
        steps = 48 if k % 3 else 32
        row = {"id": str(k), "messages": turns, "label": k % 2, "text": "a dog" if k % 2 else f"no cat {k}."}
        row["image"] = None if k not in pictured else "1.png" if k == 9 else f"{k}.png"
        row["series"] = [np.sin(np.arange(steps) * (0.1 + 0.02 * k)).tolist()] * 2
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines[:11]))
    (folder / "val.jsonl").write_text("".join(lines[11:]))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Frozen encoders by modality."""
    folder = tmp_path_factory.mktemp("encoders")
    test_encoders_series.pretrained(folder / "series", "patchtst", context_length=64)
    return {
        "image": test_encoders_image.saved(folder, "vit"),
        "series": folder / "series",
        "text": test_encoders_text.saved(folder, "bert"),
    }


def seats(folders: dict[str, Path], *modalities: str) -> list[str]:
    """These modalities by a frozen encoder; what rows have beside them and their label is put aside."""
    options = {"image": "hf_vision", "series": "hf_series", "text": "hf_text"}
    words = [f"encoder/{one}={options[one]}" for one in modalities]
    words += [f"encoder.{one}.path={folders[one]}" for one in modalities]
    return [*words, f"data.extra=[{','.join(['messages', *(one for one in options if one not in modalities)])}]"]


def train(run: Path, rows: Path, words: list[str], store: Path | None = None) -> Path:
    keeps = [] if store is None else ["data.cache_features=true", f"data.cache={store}"]
    runner.train([*COMMON, *words, f"data.path={rows}", *keeps, f"hydra.run.dir={run}"])
    return run


def said(run: Path, beginning: str) -> str:
    (line,) = [one for one in (run / "train.log").read_text().splitlines() if one.startswith(beginning)]
    return line


def hold_near(run: Path, other: Path, relative: float) -> None:
    """The same lines of metrics but for rounding, of the same rows."""
    for one, two in zip(lines_of(run), lines_of(other), strict=True):
        words = {key for key, value in one.items() if not isinstance(value, int | float)}
        assert {key: one[key] for key in words} == {key: two.pop(key) for key in words}
        assert {key: one[key] for key in one.keys() - words} == pytest.approx(two, rel=relative, abs=relative)


def entries(store: Path) -> dict[Path, int]:
    """When each was written."""
    return {file.parent: file.stat().st_mtime_ns for file in store.glob("features/*/entry.json")}


def calls_in_the_loop(monkeypatch: pytest.MonkeyPatch, encoder: type) -> list[int]:
    """How many items it is given in each of its calls between the first step and the last."""
    calls: list[int] = []
    loop, forward, close = training.loop, encoder.forward, training.close  # type: ignore[attr-defined]
    counting = False

    def counted(which: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal counting
        counting = True
        try:
            return which(*arguments)
        finally:
            counting = False

    def called(self: Any, **inputs: Tensor) -> Tokens:
        calls.extend([len(next(iter(inputs.values())))] * counting)
        return forward(self, **inputs)

    monkeypatch.setattr(training, "loop", partial(counted, loop))
    monkeypatch.setattr(training, "close", partial(counted, close))
    monkeypatch.setattr(encoder, "forward", called)
    return calls


def test_a_run_with_kept_features_is_the_run_without(
    gaps: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, ids, held-out metrics and weights to the bit; the encoder is asked no more; what is kept serves again."""
    words = ["model=instruct", *LLM, *seats(folders, "image"), "train.eval_every=3"]
    words += ["data.extra=[series,text,label]"]
    calls = calls_in_the_loop(monkeypatch, HfVision)
    without = train(tmp_path / "without", gaps, words)
    assert sum(calls) > 15
    calls.clear()
    first = train(tmp_path / "first", gaps, words, tmp_path / "store")
    written = entries(tmp_path / "store")
    again = train(tmp_path / "again", gaps, [*words, "data.workers=1"], tmp_path / "store")
    assert calls == []
    assert entries(tmp_path / "store") == written and len(written) == 2  # one for each split
    assert lines_of(first) == lines_of(without) == lines_of(again)
    assert fingerprint(first) == fingerprint(without) == fingerprint(again)
    assert "features of 11 items are kept" in said(first, "encoder.image: features")
    assert "11 computed" in said(first, "encoder.image: features")
    assert "all there already" in said(again, "encoder.image: features")


OBJECTIVES = {
    "classify": ["model=classify", "train.micro_batch_size=4"],
    "regress": ["model=regress", "checkpoint.monitor=val/mse"],
    "align": ["model=align", "model.width=8", "train.micro_batch_size=null", "evaluation.batch_size=4"],
}


@pytest.mark.parametrize(
    "objective",
    ["classify", pytest.param("regress", marks=pytest.mark.zoo), pytest.param("align", marks=pytest.mark.zoo)],
)
def test_every_objective_takes_them(gaps: Path, folders: dict[str, Path], tmp_path: Path, objective: str) -> None:
    """Pictures, series and texts; these two are ragged, so that a batch pads them and bits may not be the same."""
    words = [*OBJECTIVES[objective], *seats(folders, "image", "series", "text")]
    without, kept = train(tmp_path / "without", gaps, words), train(tmp_path / "kept", gaps, words, tmp_path / "store")
    hold_near(without, kept, 1e-5)
    for modality, count in {"image": 11, "series": 15, "text": 9}.items():
        assert f"features of {count} items" in said(kept, f"encoder.{modality}: features of")
    exact = "depend in the last bits" not in (kept / "train.log").read_text()
    assert fingerprint(without) == fingerprint(kept) or not exact


@pytest.mark.zoo
def test_a_run_goes_on_with_them_to_the_bit(rows: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """Begun without, gone on with them after step 2, and held against a run that never stopped."""
    words = ["model=classify", *seats(folders, "image", "series")]
    whole = train(tmp_path / "whole", rows, words)
    train(tmp_path / "parted", rows, [*words, "train.max_steps=2"])
    parted = train(tmp_path / "parted", rows, [*words, "resume=auto"], tmp_path / "store")
    ours = [line for line in lines_of(parted) if line["split"] == "train"]
    assert ours == [line for line in lines_of(whole) if line["split"] == "train"] and len(ours) == 5
    assert fingerprint(parted) == fingerprint(whole)


def test_the_key_is_of_weights_arguments_and_preprocess(folders: dict[str, Path], tmp_path: Path) -> None:
    """Not of weights that its tokens do not depend on, which each run draws anew (the pooler here)."""

    def made(seed: int = 0, pool: Any = "none", folder: Path = folders["image"], **more: Any) -> dict[str, Any]:
        torch.manual_seed(seed)
        encoder = HfVision(str(folder), False, "float32", pool)
        given = {"precision": {"autocast": None}, "device": CPU, "batch_size": 2} | more
        return of_encoder(encoder, {"pool": pool}, **given)

    first = made()
    assert made(seed=1) == first and json.loads(json.dumps(first)) == first
    for other in (made(pool="mean"), made(precision={"autocast": "bfloat16"}), made(batch_size=3)):
        assert other != first
    folder = tmp_path / "vit"
    shutil.copytree(folders["image"], folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.4, 0.5, 0.5]}))
    changed = made(folder=folder)
    assert changed["preprocess"] != first["preprocess"] and changed["weights"] == first["weights"]
    tensors = load_file(folder / "model.safetensors")
    name = next(one for one in tensors if one.endswith("cls_token"))
    save_file(tensors | {name: tensors[name] + 1e-6}, folder / "model.safetensors", metadata={"format": "pt"})
    assert made(folder=folder)["weights"] != first["weights"]


@pytest.mark.zoo
def test_what_changes_features_makes_others(rows: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = ["model=classify", *seats(folders, "image"), "train.max_steps=1"]

    def made(name: str, *more: str, path: Path = rows) -> int:
        """Items that were computed."""
        before = entries(store)
        train(tmp_path / name, path, [*words, *more], store)
        assert before.items() <= entries(store).items()
        line = said(tmp_path / name, "encoder.image: features")
        return 0 if "all there already" in line else int(line.split(" computed")[0].split()[-1])

    assert made("first") == 14
    assert made("same", "seed=1", "optimizer.lr=3e-3", "data.order=file") == 0
    assert made("pooled", "encoder.image.pool=mean") == 14
    assert made("precision", "precision=bf16") == 14
    other = tmp_path / "other"
    test_encoders_image.saved(other, "vit")
    assert made("moved", f"encoder.image.path={other / 'vit'}") == 14
    processor = json.loads((other / "vit" / "preprocessor_config.json").read_text())
    (other / "vit" / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.4, 0.5, 0.5]}))
    assert made("preprocess", f"encoder.image.path={other / 'vit'}") == 14
    weights = other / "vit" / "model.safetensors"
    save_file({name: one * 1.01 for name, one in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert made("weights", f"encoder.image.path={other / 'vit'}") == 14
    (tmp_path / "rows").mkdir()
    for file in rows.iterdir():
        (tmp_path / "rows" / file.name).write_bytes(file.read_bytes())
    assert made("elsewhere", path=tmp_path / "rows") == 0
    test_encoders_image.picture(77).save(tmp_path / "rows" / "12.png")
    assert made("picture", path=tmp_path / "rows") == 4  # of val, whose shard it is in


def test_why_an_encoder_runs_all_the_same_is_said(rows: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["model=classify", *seats(folders, "series"), "train.max_steps=2"]
    words += ["data.extra=[messages,text]", *PATCH]
    run = train(tmp_path / "trains", rows, words, tmp_path / "store")
    assert said(run, "encoder.image runs") == (
        "encoder.image runs in every step, its features are not kept: it trains (positions)."
    )
    assert len(entries(tmp_path / "store")) == 2


@pytest.mark.zoo
def test_a_part_that_never_trains_in_this_run_is_frozen(rows: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["model=classify", *seats(folders, "series"), "train.max_steps=2", *PATCH, "data.extra=[messages,text]"]
    later = train(tmp_path / "later", rows, [*words, "train.parts.encoder.image.from_step=1"], tmp_path / "store")
    assert "it trains (train.parts.encoder.image: from step 1)." in said(later, "encoder.image runs")
    never = [*words, "train.parts.encoder.image.from_step=2", "encoder.image.dropout=0.1"]
    kept = train(tmp_path / "never", rows, never, tmp_path / "store")
    assert "features of 14 items" in said(kept, "encoder.image: features")
    assert fingerprint(kept) == fingerprint(train(tmp_path / "without", rows, never))


def test_there_must_be_a_folder_and_room(
    rows: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=classify", *seats(folders, "image")]
    with pytest.raises(Mistake, match=r"data.cache_features=true keeps features in data.cache, which is null"):
        train(tmp_path / "nowhere", rows, [*words, "data.cache_features=true", "data.cache=null"])
    # A disk that is full cannot be had in a test: what it would say is given.
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 900})())
    with pytest.raises(
        Mistake, match=r"has 900 bytes free, and the features of 14 items of encoder.image need 4.55 kB"
    ):
        train(tmp_path / "full", rows, words, tmp_path / "store")
    assert entries(tmp_path / "store") == {}


def test_a_picture_that_cannot_be_read_is_told_with_its_row(
    rows: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in rows.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    words = ["model=classify", *seats(folders, "image"), "data.workers=1"]
    train(tmp_path / "whole", tmp_path, words, tmp_path / "store")
    (tmp_path / "8.png").write_bytes(b"no picture")  # after its row was read, which is done once
    with pytest.raises(Mistake, match=r"^train.jsonl:9 \(id 8\): `image` item 1 .* is not a whole picture"):
        train(tmp_path / "run", tmp_path, words, tmp_path / "store")


def killed_while_writing(rank: int) -> None:
    """kill -9 when the second entry's file is there and not yet sealed."""
    write, written = features.write_shard, []

    def killed(folder: Path, items: Any) -> None:
        write(folder, items)
        written.append(folder)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    features.write_shard = killed  # type: ignore[assignment]


@pytest.mark.faults
def test_a_kill_while_they_are_written_leaves_no_wrong_entry(
    rows: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    words = [*COMMON, "model=classify", *seats(folders, "image"), f"data.path={rows}"]
    keeping = [*words, "data.cache_features=true", f"data.cache={store}"]
    assert ranks.train(tmp_path / "killed", keeping, sabotage=killed_while_writing) == [-signal.SIGKILL]
    assert len(entries(store)) == 1 and len(list(store.glob("features/*.part*"))) == 1
    assert ranks.train(tmp_path / "next", keeping) == [0]
    assert "4 computed" in said(tmp_path / "next", "encoder.image: features")
    assert not list(store.glob("features/*.part*"))
    assert ranks.train(tmp_path / "without", words) == [0]
    assert fingerprint(tmp_path / "next") == fingerprint(tmp_path / "without")


@pytest.mark.faults
def test_several_processes_share_the_work(rows: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """Two of one run, and two runs at the same time over one folder."""
    words = [*COMMON, "model=classify", *seats(folders, "image", "text"), f"data.path={rows}"]
    keeping = [*words, "data.cache_features=true", f"data.cache={tmp_path / 'store'}"]
    assert ranks.train(tmp_path / "two", keeping, 2) == [0, 0]
    assert ranks.train(tmp_path / "without", words, 2) == [0, 0]
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "without")
    assert fingerprint(tmp_path / "two") == fingerprint(tmp_path / "without")
    at_once = [*words, "data.cache_features=true", f"data.cache={tmp_path / 'shared'}"]
    started = [ranks.start(tmp_path / name, at_once) for name in ("left", "right")]
    for (process,) in started:
        process.join(100)
        assert process.exitcode == 0
    assert fingerprint(tmp_path / "left") == fingerprint(tmp_path / "right")
    assert len(entries(tmp_path / "shared")) == 4


def stopped_while_writing(rank: int) -> None:
    write = features.write_shard

    def stopped(folder: Path, items: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(folder, items)

    features.write_shard = stopped  # type: ignore[assignment]


@pytest.mark.faults
def test_a_signal_while_they_are_computed_stops_the_run(rows: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    words = [*COMMON, "model=classify", *seats(folders, "image"), f"data.path={rows}"]
    keeping = [*words, "data.cache_features=true", f"data.cache={tmp_path / 'store'}"]
    assert ranks.train(tmp_path / "run", keeping, sabotage=stopped_while_writing) == [0]
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"], status["exit_code"]) == ("stopped", 0, 128 + signal.SIGTERM)
    assert len(entries(tmp_path / "store")) == 1
    assert ranks.train(tmp_path / "run", [*keeping, "resume=auto"]) == [0]
    assert ranks.train(tmp_path / "without", words) == [0]
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "without")


@pytest.mark.zoo
@pytest.mark.parametrize("encoder", LOADED)
def test_every_encoder_that_is_loaded(zoo_rows: Path, tmp_path: Path, encoder: str) -> None:
    """The same run to rounding, and to the bit where nothing is said of rounding."""
    modality, option, make = LOADED[encoder]
    folder = make(tmp_path / "weights")
    words = [*words_of(modality, option, [f"path={folder}"], "classify"), "optimizer.lr=1e-3"]
    without, kept = train(tmp_path / "a", zoo_rows, words), train(tmp_path / "b", zoo_rows, words, tmp_path / "store")
    log = (kept / "train.log").read_text()
    if "its features are not kept" in log:
        assert "it draws random numbers" in log
        return
    hold_near(without, kept, 1e-4)
    if "depend in the last bits" not in log:
        assert fingerprint(without) == fingerprint(kept)


class Halves(nn.Module):
    """An encoder of its own: tokens of an item are its numbers, scaled, and noise where it is asked for."""

    width = 2
    preprocess: Any = staticmethod(lambda item: {"numbers": torch.tensor(item)})

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.noise = noise

    def forward(self, numbers: Tensor, numbers_lengths: Tensor | None = None) -> Tokens:
        lengths = torch.full((len(numbers),), numbers.shape[1]) if numbers_lengths is None else numbers_lengths
        mask = torch.arange(numbers.shape[1]) < lengths.unsqueeze(1)
        noise = self.noise * torch.rand(()) if self.noise else 0.0
        return Tokens((numbers * self.scale + noise) * mask.unsqueeze(-1), mask)


def encoding(encoder: Halves) -> Callable[[Any], Tokens]:
    from runner.data.collate import stack

    return lambda items: encoder(**stack("series", items))


def loaded(draw: Callable[[], float] = float) -> Iterator[dict[str, Tensor]]:
    yield from ({"numbers": torch.ones(k, 2) + draw()} for k in (2, 3, 2))


def test_what_is_random_is_found() -> None:
    assert tried(loaded, encoding(Halves()), 4, CPU).random is None
    assert tried(loaded, encoding(Halves(0.1)), 4, CPU).random == "it draws random numbers, also in evaluation mode"
    for draw in (lambda: float(torch.rand(())), np.random.rand, random.random):
        assert tried(lambda draw=draw: loaded(draw), encoding(Halves()), 4, CPU).random == "its preprocess is random"
    own = np.random.default_rng(0)
    assert tried(lambda: loaded(own.random), encoding(Halves()), 4, CPU).random == "its preprocess is random"


def test_what_says_of_itself_that_it_is_random_is_believed() -> None:
    encoder = Halves()
    assert why_not(encoder, (), 0, 5) is None
    encoder.preprocess = type("Crop", (), {"is_random": True})()
    assert why_not(encoder, (), 0, 5) == "its preprocess says of itself that it is random"
    assert why_not(nn.Identity(), (), 0, 5) == "it has no weights that could be frozen"


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=20), batch_size=st.integers(1, 5))
@settings(deadline=None, max_examples=15)
def test_items_are_encoded_alone_and_in_order(sizes: list[int], batch_size: int) -> None:
    items = [{"numbers": torch.full((size, 2), float(k))} for k, size in enumerate(sizes)]
    kept = encoded_alone(iter(items), encoding(Halves()), batch_size)
    for item, one in zip(items, kept, strict=True):
        assert torch.equal(one.features, item["numbers"] * 0.5) and one.mask.all()


item_tokens = st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=12)


@given(
    shards=st.lists(item_tokens, min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    by_channel=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_what_was_written_is_read(
    shards: list[list[list[bool]]], dtype: torch.dtype, by_channel: bool, tmp_path_factory: Any
) -> None:
    """Also in a loader worker, which gets the pickle."""
    chance = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("shards")
    written, places, items = {}, {}, []
    for s, masks in enumerate(shards):
        tokens = []
        for k, mask in enumerate(masks):
            grid = (1, len(mask)) if k % 2 else None
            numbers = torch.randn(len(mask), 3, generator=chance).to(dtype)
            tokens.append(ItemTokens(numbers, torch.tensor(mask), grid, by_channel))
            items.append(f"text {s} {k}")
            written[items[-1]], places[key_of("text", items[-1])] = tokens[-1], (s, k)
        (folder / str(s)).mkdir()
        write_shard(folder / str(s), tokens)
    kept = KeptFeatures.of("text", [folder / str(s) for s in range(len(shards))], places)
    kept.tokens(items[:1])
    for reader in (kept, pickle.loads(pickle.dumps(kept))):
        batch = reader.tokens(items)
        assert (batch.features.transpose(1, 2) if by_channel else batch.features).is_contiguous()
        assert batch.features.dtype == dtype and batch.mask.dtype == torch.bool
        for k, item in enumerate(items):
            size = len(written[item].mask)
            assert torch.equal(batch.features[k, :size], written[item].features)
            assert torch.equal(batch.mask[k, :size], written[item].mask) and not batch.mask[k, size:].any()
        (alone,) = [reader.tokens([items[-1]])]
        assert alone.grid == written[items[-1]].grid and alone.features.shape[1] == len(written[items[-1]].mask)


def test_the_pickle_of_many_items_is_small(tmp_path: Path) -> None:
    write_shard(tmp_path, [ItemTokens(torch.zeros(50, 64), torch.ones(50, dtype=torch.bool), None)] * 100)
    kept = KeptFeatures.of("text", [tmp_path], {key_of("text", str(k)): (0, k) for k in range(100)})
    kept.tokens(["7"])
    assert len(pickle.dumps(kept)) < 5_000 < Shard(tmp_path).item(0).features.nbytes


def test_items_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    black, white = Image.new("L", (2, 2)), Image.new("L", (2, 2), 255)
    items = [
        "text", "texts", [[1.0, 2.0]], [[1.0, None]], [[1.0], [2.0]], np.ones((1, 2)), np.ones((2, 1)),
        np.ones((1, 2), dtype=np.float32), black, white, Image.new("RGB", (2, 2)),
        (np.ones(3, dtype=np.float32), 16_000), (np.ones(3, dtype=np.float32), 8_000),
    ]  # fmt: skip
    assert len({content_of("series", item) for item in items}) == len(items)
    assert content_of("image", black) == content_of("image", black.copy())
    for name, picture in (("a.png", black), ("b.png", black), ("c.png", white)):
        picture.save(tmp_path / name)
    a, b, c = (content_of("image", tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    assert a == b != c and content_of("image", str(tmp_path / "a.png")) == a
    assert key_of("image", tmp_path / "a.png") != key_of("image", tmp_path / "b.png")


def test_a_description_is_the_same_in_every_process() -> None:
    """Not of addresses, of the order of a set, or of how a tokenizer was last called."""
    tokenizer = test_encoders_text.letter_tokenizer(test_encoders_text.BERT, "[CLS]", "[SEP]")
    before = json.dumps(described({"sets": {"b", "a", "c"}, "object": tokenizer, "function": partial(max, 3)}))
    tokenizer("a dog and a cat", truncation=True, max_length=4)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert json.dumps(described({"sets": {"c", "b", "a"}, "object": again, "function": partial(max, 3)})) == before
    assert "0x" not in before
    other = test_encoders_text.letter_tokenizer(test_encoders_text.BERT, None, "[SEP]")
    assert described(other) != described(tokenizer)


def test_a_whole_entry_is_found_and_a_cut_one_is_not(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "file").write_bytes(b"12345")

    entry = cache.keep(tmp_path, "kind", {"a": 1}, make)
    assert entry == cache.place_of(tmp_path, "kind", {"a": 1}) and cache.is_whole(entry)
    (entry / "file").write_bytes(b"1234")
    assert not cache.is_whole(entry)
    assert (cache.keep(tmp_path, "kind", {"a": 1}, make) / "file").read_bytes() == b"12345"
