"""The experiments of conf/experiment: what they are made of, and each of them tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import test_encoders_text
from test_zoo import SMALL, rows

import runner
from runner.build import skeleton
from runner.config import CONF, compose
from runner.inventory import components_of

__all__ = ["rows"]  # the fixture

NAMES = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
LANGUAGE_MODEL = ["llm=tiny", "lora=none", "llm.hidden_size=16", "llm.layers=1", "llm.heads=2", "llm.key_value_heads=1"]
IMAGE = ["encoder/image=patch", *(f"encoder.image.{one}" for one in SMALL)]
AUDIO = [f"encoder.audio.{one}" for one in SMALL]
SERIES = [
    "encoder/series=series_patch", *(f"encoder.series.{one}" for one in SMALL), "encoder.series.channels=2",
]  # fmt: skip
FEW_STEPS = ["train.epochs=null", "train.max_steps=2", "train.batch_size=4", "train.eval_every=null", "tracker=none"]


def test_the_integers_of_trimodal_instruct() -> None:
    """Qwen2.5-0.5B; LoRA of rank 16 on q, k, v and o of 24 layers; 512 -> 2,048 -> 4 x 896 for both modalities."""
    composed = compose("show", ["experiment=trimodal_instruct", "show.part=parameters"])
    found = {one.name: (one.trainable, one.frozen) for one in components_of(skeleton(composed))}
    assert found["llm"] == (0, 494_032_768)
    assert found["lora"] == (2_162_688, 0)
    assert found["projector"] == (512 * 2048 + 2048 + 2048 * 3584 + 3584, 0) == (8_394_240, 0)
    assert sum(trainable for trainable, _ in found.values()) == 10_556_928


def tiny(name: str, rows: Path, folder: Path) -> list[str]:
    """Its own words with parts that are small, and rows of the right kind."""
    jsonl = [f"data.path={rows}/train.jsonl", f"data.val_path={rows}/train.jsonl"]
    words = [f"experiment={name}", *FEW_STEPS]
    match name:
        case "quick":
            return [*words, *LANGUAGE_MODEL]
        case "maths_chat" | "maths_chat_quick":
            maths = ["quantization=none", "train.micro_batch_size=1", "llm.max_length=2048", "model.max_new_tokens=8"]
            return [*words, *LANGUAGE_MODEL, *jsonl, *maths, "data.extra=[image,audio,series,text,label]"]
        case "series_chat":
            extra = ["data.extra=[image,audio,text,label]", "model.max_new_tokens=4"]
            return [*words, *LANGUAGE_MODEL, *SERIES, *jsonl, *extra]
        case "vision_classify":
            for k in range(6):
                place = folder / "pictures" / "ab"[k % 2] / f"{k}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(rows / f"{k}.png", place)
            return [*words, *IMAGE, f"data.path={folder}/pictures"]
        case "trimodal_align":
            text = [f"encoder.text.path={test_encoders_text.saved(folder / 'bert', 'bert')}", "encoder/text=hf_text"]
            return [*words, *IMAGE, *AUDIO, *text, *jsonl, "data.extra=[series,messages]", "model.width=16"]
        case "trimodal_instruct":
            run = folder / "phase-1"
            runner.train([*tiny("trimodal_align", rows, folder), f"hydra.run.dir={run}"])
            phase_2 = [f"model.aligner={run}", "model.aligner_width=16", "model.max_new_tokens=4"]
            return [*words, *LANGUAGE_MODEL, *IMAGE, *AUDIO, *jsonl, *phase_2, "data.extra=[series,text]"]
    raise AssertionError(f"experiment={name} has no tiny form here; add one")


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_tiny(name: str, rows: Path, tmp_path: Path) -> None:
    summary = runner.train([*tiny(name, rows, tmp_path), f"hydra.run.dir={tmp_path}/run"])
    assert summary["last"]["step"] == 2 and summary["last"]["val/loss"] > 0
    assert summary["parameters"]["trainable"] > 0
    if name == "trimodal_instruct":
        assert {"val/exact_match", "val/label_named"} <= summary["last"].keys()
        frozen = summary["parameters"]["by_component"]
        assert frozen["encoder.image"]["trainable"] == frozen["encoder.audio"]["trainable"] == 0
