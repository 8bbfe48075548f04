"""What a step costs with data.cache_features and without, where a frozen encoder is ten times what trains.

    python -m benchmarks.feature_cache [--rounds N] [--threads N]

A vision transformer of ViT-S's shape with random weights, 64 random pictures with a question each, an average of its
tokens, and a small language model that trains. Runs with kept features and without take turns in one process; seconds
are those of steps of the second epoch on, evaluation and saving left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

ROWS, BATCH, EPOCHS = 64, 8, 3
SIDE, PATCH, WIDTH, LAYERS, HEADS = 224, 16, 384, 12, 6
"""ViT-S/16."""
WORDS = [
    "model=instruct", "data=jsonl", "tracker=none", f"train.epochs={EPOCHS}", f"train.batch_size={BATCH}",
    "train.log_every=1", "evaluation.predict_rows=0", "checkpoint.monitor=val/loss", "encoder/image=hf_vision",
    "projector=average_pool", "llm.hidden_size=192", "llm.intermediate_size=640", "llm.layers=4", "llm.heads=4",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_rows(folder / "rows")
        write_encoder(folder / "encoder")
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(given.rounds):
            for keeps in (False, True) if number % 2 == 0 else (True, False):
                run = train(folder, f"{number}-{keeps}", keeps, given.threads)
                seconds[keeps].append(median(seconds_a_step(run)))
        parameters = json.loads((run / "summary.json").read_text())["parameters"]
        losses = {keeps: losses_of(folder / f"0-{keeps}") for keeps in (False, True)}
    frozen, trains = parameters["total"] - parameters["trainable"], parameters["trainable"]
    print(f"{frozen:,} parameters are frozen, {trains:,} train: {frozen / trains:.1f} to 1. {given.threads} threads.")
    for keeps, name in ((False, "without"), (True, "kept")):
        each = ", ".join(f"{one:.3f}" for one in seconds[keeps])
        print(f"{name:>8}: {median(seconds[keeps]):.3f} s a step ({each})")
    ratios = [one / other for one, other in zip(seconds[False], seconds[True], strict=True)]
    print(f"   ratio: {median(ratios):.1f} ({', '.join(f'{one:.1f}' for one in ratios)})")
    print(f"  losses: {'equal to the bit' if losses[False] == losses[True] else 'not equal'}")


def train(folder: Path, name: str, keeps: bool, threads: int) -> Path:
    import runner

    words = [*WORDS, f"encoder.image.path={folder / 'encoder'}", f"data.path={folder / 'rows'}", "name=benchmark"]
    words += [f"cluster.threads={threads}", f"data.cache={folder / 'cache'}", f"data.cache_features={keeps}"]
    runner.train([*words, f"hydra.run.dir={folder / name}"])
    return folder / name


def lines_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


def seconds_a_step(run: Path) -> list[float]:
    """Of the second epoch on."""
    return [BATCH / line["samples_per_s"] for line in lines_of(run) if line["step"] > ROWS // BATCH]


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in lines_of(run)]


def write_rows(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    chance = np.random.default_rng(0)
    lines = []
    for k in range(ROWS):
        Image.fromarray(chance.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        turns = [{"role": "user", "content": "Which number is it?"}, {"role": "assistant", "content": str(k)}]
        lines.append(json.dumps({"id": str(k), "messages": turns, "image": f"{k}.png"}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))


def write_encoder(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    shape = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
    )
    ViTModel(shape, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


if __name__ == "__main__":
    main()
