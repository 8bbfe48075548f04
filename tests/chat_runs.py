"""Small rows to chat about, with and without pictures, and what a run over them has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHORT = [
    "data=jsonl", "tracker=none", "train.batch_size=4", "train.log_every=1", "schedule=constant", "optimizer.lr=2e-2",
    "optimizer.weight_decay=0", "evaluation.predict_rows=2", "evaluation.batch_size=3", "model.max_new_tokens=3",
    "checkpoint.monitor=val/loss", "checkpoint.mode=min",
]  # fmt: skip
PICTURES = ["encoder.image.hidden_size=16", "encoder.image.layers=1", "encoder.image.heads=2"]


def write_rows(folder: Path, rows: int = 8) -> Path:
    """Questions of unequal length, each with a picture, answered by one letter; all of them in train, three in val."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    lines = []
    for k in range(rows):
        pixels = chance.integers(0, 60, (8, 8)).astype(np.uint8) + np.uint8(150 * (k % 2))
        Image.fromarray(pixels).save(folder / f"{k}.png")
        question = {"role": "user", "content": "Dark or light?" + " Please." * (k % 3)}
        answer = {"role": "assistant", "content": "dl"[k % 2]}
        lines.append(json.dumps({"id": str(k), "messages": [question, answer], "image": f"{k}.png"}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "val.jsonl").write_text("".join(lines[:3]))
    return folder


def lines_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run: rates."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_per_s")} for line in lines]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines_of(run) if line["split"] == "train"]
