"""Items to tensors and examples to batches."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runner.data.collate import Collate
from runner.data.decode import MAX_PIXELS, decode
from runner.protocols import IGNORED, Example, Mistake, Row


def pixels(picture: Image.Image) -> dict[str, torch.Tensor]:
    return {"pixels": torch.from_numpy(np.array(picture)).float()}


def values(channels: np.ndarray) -> dict[str, torch.Tensor]:
    return {"values": torch.from_numpy(channels), "scale": torch.tensor(2.0)}


def example(name: str, length: int, *places: tuple[str, int, int], **items: tuple) -> Example:
    ids = np.arange(1, length + 1, dtype=np.int32)
    return Example(name, ids, np.where(ids > 1, ids, IGNORED), places, Row(name, f"train.jsonl:{name}", items=items))


def test_batch() -> None:
    picture = Image.new("L", (2, 2), 7)
    a = example(
        "1", 2, ("series", 0, 0), ("image", 1, 1), ("image", 0, 2), image=(picture, picture), series=([[1, 2, 3]],)
    )
    b = example("2", 3, ("series", 0, 1), series=([[4, 5], [6, 7]],))
    collate = pickle.loads(pickle.dumps(Collate({"image": pixels, "series": values, "audio": pixels}, pad_id=9)))
    batch = collate([a, b])
    assert batch.input_ids.tolist() == [[1, 2, 9], [1, 2, 3]] and batch.input_ids.dtype == torch.long
    assert batch.labels.tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 2, 3]]
    assert batch.lengths == [2, 3] and batch.ids == ["1", "2"] and batch.rows == [a.row, b.row]
    assert set(batch.streams) == {"image", "series"}, "no item, no stream"
    assert batch.streams["image"].places == [(0, 1, 1), (0, 2, 2)]
    assert batch.streams["image"].inputs["pixels"].shape == (2, 2, 2) and len(batch.streams["image"].inputs) == 1
    series = batch.streams["series"]
    assert series.places == [(0, 0, 0), (1, 1, 0)]
    assert series.inputs["values"].tolist() == [[[1, 2, 3], [0, 0, 0]], [[4, 5, 0], [6, 7, 0]]]
    assert series.inputs["values_lengths"].tolist() == [1, 2]
    assert series.inputs["scale"].tolist() == [2, 2]


def test_lengths_are_those_of_the_first_ragged_dimension() -> None:
    collate = Collate({"series": values}, pad_id=0)
    batch = collate([example("1", 1, ("series", 0, 0), series=([[1.0] * n],)) for n in (3, 5, 4)])
    assert batch.streams["series"].inputs["values"].shape == (3, 1, 5)
    assert batch.streams["series"].inputs["values_lengths"].tolist() == [3, 5, 4]


def test_a_failing_item_names_row_and_file(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("half.png", "text.png"):
        bad = example("7", 2, ("image", 0, 0), image=(tmp_path / name,))
        with pytest.raises(Mistake, match=rf"train.jsonl:7 \(id 7\): `image` item 1 .*{name}.*not a whole picture"):
            Collate({"image": pixels}, 0)([bad])

    def broken(picture: Image.Image) -> dict[str, torch.Tensor]:
        raise RuntimeError("too small")

    with pytest.raises(Mistake, match=r"train.jsonl:7 \(id 7\).*RuntimeError: too small"):
        Collate({"image": broken}, 0)([example("7", 2, ("image", 0, 0), image=(whole,))])


def test_picture_modes(tmp_path: Path) -> None:
    def through(picture: Image.Image, name: str = "a.png", **options: Any) -> Image.Image:
        picture.save(tmp_path / name, **options)
        return decode("image", str(tmp_path / name))

    assert [through(Image.new(mode, (2, 2))).mode for mode in ("1", "L", "LA")] == ["L"] * 3
    assert [through(Image.new(mode, (2, 2))).mode for mode in ("RGB", "RGBA", "P")] == ["RGB"] * 3
    assert through(Image.new("CMYK", (2, 2)), "a.jpg").mode == "RGB"
    sixteen = Image.fromarray(np.array([[0, 300, 32768, 65000]], dtype=np.uint16))
    assert np.asarray(through(sixteen)).tolist() == [[0, 1, 128, 253]]
    with pytest.raises(Mistake, match="floating-point"):
        through(Image.new("F", (2, 2)), "a.tiff")
    with pytest.raises(Mistake, match="outside 0..65535"):
        decode("image", Image.fromarray(np.array([[70000]], dtype=np.int32)))


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("L", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert decode("image", tmp_path / "a.jpg").size == (2, 4)


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    for side in (7_100, 9_600, 14_000):  # above our limit, Pillow's warning and Pillow's error
        assert side**2 > MAX_PIXELS
        Image.new("1", (side, side)).save(tmp_path / "a.png")
        with pytest.raises(Mistake, match=rf"a.png .*more than {MAX_PIXELS:,} pixels"):
            decode("image", tmp_path / "a.png")


def test_other_values() -> None:
    channels = decode("series", [[1, 2.5]])
    assert channels.dtype == np.float32 and channels.tolist() == [[1, 2.5]]
    samples = (np.zeros((1, 4), np.float32), 8000)
    assert decode("audio", samples) is samples and decode("text", "a") == "a"
