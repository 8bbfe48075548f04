"""Parts from a folder outside the package, through the real command line: the encoder is the one that the docs show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runner
from runner.checkpoint import Local
from runner.cli import main
from runner.protocols import Mistake

DOCS = Path(__file__).parents[1] / "docs" / "plugins.md"
FUSION = '''
"""All items of a row as one token, their mean, before the text."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from runner.fusion.splice import splice
from runner.protocols import Tokens


class MeanToken(nn.Module):
    placement = "front"

    def __init__(self, llm_width: int, scale: float) -> None:
        super().__init__()
        self.mix = nn.Linear(llm_width, llm_width)
        self.scale = scale

    def forward(self, text, batch, streams, side):
        means = {name: self.mix(tokens.features.mean(1, keepdim=True)) * self.scale for name, tokens in streams.items()}
        ones = {name: torch.ones(mean.shape[:2], dtype=torch.bool) for name, mean in means.items()}
        return splice(text, batch, {name: Tokens(means[name], ones[name]) for name in means}, side)
'''
EXPLODING = """
from my_encoder import MeanColour


class Exploding(MeanColour):
    def __init__(self, hidden_size: int, explodes: bool) -> None:
        super().__init__(hidden_size)
        if explodes:
            raise RuntimeError("boom")
"""
ECG = '''
import numpy as np
import torch
from torch import nn

from runner.protocols import Tokens


def waves_of(item):
    return {"waves": torch.from_numpy(np.asarray(item, dtype=np.float32)).mean(0)}


class Ecg(nn.Module):
    """A token a sample of a series; shorter series of a batch are padded and masked."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.width = hidden_size
        self.preprocess = waves_of
        self.layer = nn.Linear(1, hidden_size)

    def forward(self, waves, waves_lengths=None):
        lengths = torch.full((len(waves),), waves.shape[1]) if waves_lengths is None else waves_lengths
        return Tokens(self.layer(waves.unsqueeze(-1)), torch.arange(waves.shape[1]) < lengths.unsqueeze(1))
'''
SMALL = [
    "tracker=none", "train.max_steps=3", "train.batch_size=8", "train.eval_every=null", "evaluation.predict_rows=4",
    "llm.hidden_size=16", "llm.intermediate_size=16", "llm.layers=1", "llm.heads=2",
]  # fmt: skip


def my_conf(folder: Path) -> Path:
    """The files of docs/plugins.md, a fusion, and an encoder that fails when it is told to."""
    blocks = re.findall(r"```(?:python|yaml)\n# my_conf/(\S+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert {name for name, _ in blocks} == {"my_encoder.py", "encoder/image/mean_colour.yaml"}
    files = dict(blocks) | {
        "my_fusion.py": FUSION,
        "fusion/mean_token.yaml": "_target_: my_fusion.MeanToken\nscale: 2.0\n",
        "exploding.py": EXPLODING,
        "encoder/image/exploding.yaml": "_target_: exploding.Exploding\nhidden_size: 8\nexplodes: false\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def cli(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COMET_API_KEY"}
    return subprocess.run(
        [sys.executable, "-m", "runner", "train", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_an_encoder_and_a_fusion_from_outside_train(tmp_path: Path) -> None:
    conf = my_conf(tmp_path / "my_conf")
    done = cli(
        tmp_path, "--config-dir", str(conf), "encoder/image=mean_colour", "encoder.image.hidden_size=24",
        "fusion=mean_token", "fusion.scale=0.5", "hydra.run.dir=run", "data.workers=1", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    newest, _ = Local().newest(tmp_path / "run")
    assert newest is not None
    weights = Local().load(newest).trainable
    assert weights["encoder.image.layer.weight"].shape == (24, 3)
    assert weights["fusion.mix.weight"].shape == (16, 16)
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["last"]) == 3


def test_a_sweep_over_precision_in_one_process_goes_on_past_a_job_that_fails(tmp_path: Path) -> None:
    conf = my_conf(tmp_path / "my_conf")
    done = cli(
        tmp_path, "--config-dir", str(conf), "-m", "encoder/image=exploding", "encoder.image.explodes=false,true",
        "precision=fp32,bf16", "name=two words", *SMALL,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (sweep,) = (tmp_path / "multirun" / "two words").iterdir()
    jobs = [sweep / str(k) for k in range(4)]
    states = [json.loads((job / "status.json").read_text()) for job in jobs]
    assert [state["state"] for state in states] == ["finished", "finished", "failed", "failed"]
    assert [json.loads((job / "summary.json").read_text())["precision"]["autocast"] for job in jobs[:2]] == [
        None,
        "bfloat16",
    ]
    for job, state in zip(jobs[2:], states[2:], strict=True):
        assert (
            "encoder.image: exploding.Exploding failed: RuntimeError: boom" in state["error"]
            and state["exit_code"] == 1
        )
        log = (job / "train.log").read_text()
        assert "Traceback" in log and 'raise RuntimeError("boom")' in log
    assert "Traceback" not in done.stderr


WRONG = """
import torch
from my_encoder import MeanColour
from torch import nn
from runner.protocols import Fused, Tokens


def pixels_alone(picture):
    return torch.zeros(3)


class Encoder(MeanColour):
    def __init__(self, wrong: str) -> None:
        super().__init__(8)
        self.wrong = wrong
        if wrong == "preprocess":
            self.preprocess = pixels_alone

    def forward(self, pixels):
        tokens = super().forward(pixels)
        features, mask = tokens.features, tokens.mask
        return {
            "preprocess": tokens,
            "none": None,
            "tensor": features,
            "mask": Tokens(features, mask.float()),
            "count": Tokens(features.repeat(2, 1, 1), mask.repeat(2, 1)),
            "empty": Tokens(features[:, :0], mask[:, :0]),
            "width": Tokens(features[:, :, :5], mask),
            "rank": Tokens(features[:, 0], mask[:, 0]),
        }[self.wrong]


class Projector(nn.Module):
    def __init__(self, encoder_width: int, llm_width: int) -> None:
        super().__init__()

    def forward(self, tokens):
        return tokens


class Fusion(nn.Module):
    placement = "front"

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, text, batch, streams, side):
        ones = torch.ones(text.shape[:2], dtype=torch.long)
        if self.wrong == "labels":
            return Fused(text, ones, ones, torch.full_like(batch.labels, -100))
        return Fused(text, ones.bool(), ones, batch.labels)
"""
ENCODER_GIVES = "it must give runner.protocols.Tokens with features [1, T, 8], T at least 1, and a bool mask [1, T]."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wrong=preprocess"], "encoder.image: its preprocess gave float32 [3]; it must give a dict of tensors."),
        (["wrong=none"], f"encoder.image gave None; {ENCODER_GIVES}"),
        (["wrong=tensor"], f"encoder.image gave float32 [1, 1, 8]; {ENCODER_GIVES}"),
        (
            ["wrong=mask"],
            f"encoder.image gave Tokens(features=float32 [1, 1, 8], mask=float32 [1, 1]); {ENCODER_GIVES}",
        ),
        (["wrong=count"], "encoder.image gave Tokens(features=float32 [2, 1, 8]"),
        (["wrong=empty"], "encoder.image gave Tokens(features=float32 [1, 0, 8]"),
        (["wrong=width"], "encoder.image gave Tokens(features=float32 [1, 1, 5]"),
        (["wrong=rank"], "encoder.image gave Tokens(features=float32 [1, 8]"),
        (["projector=wrong"], "projector (of encoder.image) gave Tokens(features=float32 [1, 1, 32]"),
        (["fusion=wrong", "fusion.wrong=labels"], "fusion labels 0 positions of a row that has"),
        (["fusion=wrong", "fusion.wrong=mask"], "fusion gave Fused(embeddings=float32 [1, "),
    ],
)
def test_a_part_that_gives_what_it_should_not_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    conf = my_conf(tmp_path / "my_conf")
    # Without the plugin folders of earlier tests, which may hold files of the same names.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.startswith(str(tmp_path.parent))])
    for name in ("wrong_parts", "my_encoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (conf / "wrong_parts.py").write_text(WRONG)
    for group, name in (("encoder/image", "Encoder"), ("projector", "Projector"), ("fusion", "Fusion")):
        (conf / group).mkdir(parents=True, exist_ok=True)
        wrong = "" if name == "Projector" else "wrong: none\n"
        (conf / group / "wrong.yaml").write_text(f"_target_: wrong_parts.{name}\n{wrong}")
    if words[0].startswith("wrong="):
        words = ["encoder/image=wrong", f"encoder.image.{words[0]}"]
    else:
        words = ["encoder/image=mean_colour", *words]
    assert main(["train", f"--config-dir={conf}", *words, *SMALL]) == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "node",
    [
        "callbacks: {evil: {_target_: pathlib.Path.touch, self: pwned}}",
        "launcher: {_target_: pathlib.Path}",
        "job_logging: {handlers: {h: {'()': pathlib.Path}}}",
    ],
)
def test_hydras_own_node_names_no_code(tmp_path: Path, node: str) -> None:
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "evil.yaml").write_text(f"# @package _global_\nhydra:\n  {node}\n")
    with pytest.raises(Mistake, match=f"hydra.{node.partition(':')[0]}"):
        runner.train(["--config-dir", "my_conf", "experiment=evil"])


def test_a_modality_of_ones_own_trains(tmp_path: Path) -> None:
    """Series of unequal length in a field `ecg`, at their places `<ecg>`: the answer stands in them alone."""
    conf = tmp_path / "my_conf"
    (conf / "encoder" / "ecg").mkdir(parents=True)
    (conf / "my_ecg.py").write_text(ECG)
    (conf / "encoder" / "ecg" / "mine.yaml").write_text("_target_: my_ecg.Ecg\nhidden_size: 8\n")
    with (tmp_path / "rows.jsonl").open("w") as file:
        for k in range(64):
            level = 1.0 if k % 3 else -1.0
            series = [[level + 0.01 * (k % 7) for _ in range(3 + k % 5)]]
            question = {"role": "user", "content": "<ecg> High or low?"}
            answer = {"role": "assistant", "content": "high" if level > 0 else "low"}
            file.write(json.dumps({"ecg": series, "messages": [question, answer]}) + "\n")
    summary = runner.train(
        [
            "--config-dir", str(conf), "+encoder/ecg=mine", "encoder/image=null", "fusion=interleave", "data=jsonl",
            f"data.path={tmp_path}/rows.jsonl", f"data.val_path={tmp_path}/rows.jsonl", "train.max_steps=40",
            "train.batch_size=16", "optimizer.lr=2e-3", "schedule.warmup_steps=10", "tracker=none",
        ]
    )  # fmt: skip
    assert summary["last"]["val/exact_match"] == 1.0
    assert set(summary["parameters"]["by_component"]) == {"encoder.ecg", "projector.ecg", "llm"}
