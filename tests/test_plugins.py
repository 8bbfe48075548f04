"""Parts of a user's own, a Python file and a YAML each in a folder outside the package, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

ENCODER = '''
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from runner.protocols import Tokens


@dataclass(frozen=True)
class Brightness:
    """A picture to `rows` [8], the mean brightness of each of its rows."""

    def __call__(self, picture):
        return {"rows": torch.from_numpy(np.array(picture.convert("L").resize((8, 8)), dtype=np.float32).mean(1) / 255)}


class MeanColour(nn.Module):
    def __init__(self, dim: Annotated[int, Ge(1)]) -> None:
        super().__init__()
        self.width = dim
        self.preprocess = Brightness()
        self.layer = nn.Linear(8, dim)

    def forward(self, rows: Tensor) -> Tokens:
        """rows [N, 8] -> [N, 1, E]"""
        features = self.layer(rows).unsqueeze(1)
        return Tokens(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))
'''
FUSION = """
from torch import nn

from runner.fusion.splice import splice


class Scaled(nn.Module):
    placement = "front"

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, text, batch, streams, side):
        return splice(text * self.factor, batch, streams, side)
"""
FILES = {
    "my_encoder.py": ENCODER,
    "my_fusion.py": FUSION,
    "encoder/image/mean_colour.yaml": "_target_: my_encoder.MeanColour\ndim: 4\n",
    "fusion/scaled.yaml": "_target_: my_fusion.Scaled\nfactor: 1\n",
}


def test_an_encoder_and_a_fusion_from_a_folder_train_in_two_precisions(tmp_path: Path) -> None:
    """Also: a job whose values are wrong is recorded in its own folder, and the others go on."""
    for name, text in FILES.items():
        file = tmp_path / "my_conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    words = (
        "train --config-dir my_conf -m encoder/image=mean_colour fusion=scaled encoder.image.dim=5 precision=fp32,bf16 "
        "train.max_steps=2,0 train.eval_every=null train.batch_size=8 evaluation.predict_rows=2 data.workers=1 "
        "tracker=none hydra.sweep.dir=swept"
    )
    done = subprocess.run(
        [sys.executable, "-m", "runner", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    folders = [tmp_path / "swept" / str(number) for number in range(4)]
    states = [json.loads((folder / "status.json").read_text()) for folder in folders]
    assert [one["state"] for one in states] == ["finished", "failed", "finished", "failed"]
    assert "train.max_steps: 0 is wrong" in states[1]["error"]
    for folder, precision in ((folders[0], "fp32"), (folders[2], "bf16")):
        saved = OmegaConf.load(folder / "config.yaml")
        assert saved.precision.compute == precision
        assert saved.encoder.image == {"_target_": "my_encoder.MeanColour", "dim": 5}
        parameters = json.loads((folder / "summary.json").read_text())["parameters"]
        assert parameters["by_component"]["encoder.image"]["trainable"] == 8 * 5 + 5
