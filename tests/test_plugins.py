"""Parts from a folder outside the package, through the real command line: those that docs/plugins.md shows, and its
commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from doc_commands import Command, Walk, commands, hold, run, script_of
from test_exactness import lines_of, train_lines

import runner
from runner import build
from runner.checkpoint import Local
from runner.cli import main
from runner.protocols import Mistake
from runner.run_folder import read_json, read_status
from runner.trackers.isolated import Isolated

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
from my_encoder import Thumbnail


class Exploding(Thumbnail):
    def __init__(self, hidden_size: int, explodes: bool) -> None:
        super().__init__(8, hidden_size)
        if explodes:
            raise RuntimeError("boom")
"""
SMALL = [
    "tracker=none", "train.max_steps=3", "train.batch_size=8", "train.eval_every=null", "evaluation.predict_rows=4",
    "llm.hidden_size=16", "llm.intermediate_size=16", "llm.layers=1", "llm.heads=2",
]  # fmt: skip


def my_conf(folder: Path) -> Path:
    """The files of docs/plugins.md, a fusion, and an encoder that fails when it is told to."""
    files = documented() | {
        "my_fusion.py": FUSION,
        "fusion/mean_token.yaml": "_target_: my_fusion.MeanToken\nscale: 2.0\n",
        "exploding.py": EXPLODING,
        "encoder/image/exploding.yaml": "_target_: exploding.Exploding\nhidden_size: 8\nexplodes: false\n",
    }
    return write(folder, files)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def documented() -> dict[str, str]:
    """The files of my_conf that docs/plugins.md shows: a header of Hydra's stands in a YAML's first line."""
    blocks = re.findall(r"```(?:python|yaml)\n# my_conf/(\S+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 13, [name for name, _ in blocks]
    return dict(blocks)


@pytest.fixture(autouse=True)
def no_plugins_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other tests' files of the same names are neither loaded nor found."""
    elsewhere = str(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.startswith(elsewhere)])
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(elsewhere):
            monkeypatch.delitem(sys.modules, name)


def cli(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COMET_API_KEY"}
    return subprocess.run(
        [sys.executable, "-m", "runner", "train", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.zoo
def test_an_encoder_and_a_fusion_from_outside_train(tmp_path: Path) -> None:
    conf = my_conf(tmp_path / "my_conf")
    done = cli(
        tmp_path, "--config-dir", str(conf), "encoder/image=thumbnail", "encoder.image.hidden_size=24",
        "fusion=mean_token", "fusion.scale=0.5", "hydra.run.dir=run", "data.workers=1", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    newest, _ = Local().newest(tmp_path / "run")
    assert newest is not None
    weights = Local().load(newest).trainable
    assert weights["encoder.image.layer.weight"].shape == (24, 64)
    assert weights["fusion.mix.weight"].shape == (16, 16)
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["last"]) == 3


@pytest.mark.zoo
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
from dataclasses import replace

import torch
from my_encoder import Thumbnail
from my_tags import Tags
from PIL import Image
from torch import nn

from runner.protocols import Fused, Message, Prediction, Row, Step, Term, Tokens


def pixels_alone(picture):
    return torch.zeros(3)


class Encoder(Thumbnail):
    def __init__(self, wrong: str) -> None:
        super().__init__(8, 8)
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
    def __init__(self, encoder_width: int, llm_width: int, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.layer = nn.Linear(encoder_width, llm_width)
        self.term_weights = {"size": 0.1} if wrong == "vector" else {}

    def forward(self, tokens):
        features, mask = self.layer(tokens.features), tokens.mask
        each = features.mean((1, 2))
        return {
            "width": tokens,
            "grid": Tokens(features, mask, (2, 3)),
            "terms": Tokens(features, mask, terms={"size": each}),
            "vector": Tokens(features, mask, terms={"size": each.sum()}),
        }[self.wrong]


class Fusion(nn.Module):
    placement = "front"

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, text, batch, streams, side):
        ones = torch.ones(text.shape[:2], dtype=torch.long)
        if self.wrong == "labels":
            return Fused(text, ones, ones, torch.full_like(batch.labels, -100), batch.input_ids)
        if self.wrong == "ids":
            return Fused(text, ones, ones, batch.labels, batch.input_ids + 1)
        return Fused(text, ones.bool(), ones, batch.labels, batch.input_ids)


class Pooled(nn.Module):
    def __init__(self, widths) -> None:
        super().__init__()
        self.width = 3
        self.layer = nn.Linear(widths["image"], 4)

    def forward(self, vectors, present):
        return self.layer(vectors["image"])


class Objective(Tags):
    def __init__(self, encoders, fusion, rows, memory, wrong: str) -> None:
        super().__init__(encoders, fusion, rows, memory, 0.5)
        self.wrong = wrong

    def counts(self, batch):
        return 3.0 if self.wrong == "counts" else super().counts(batch)

    def forward(self, batch):
        total = super().forward(batch).terms["loss"].sum
        terms = {"loss": Term(total)}
        return {
            "tensor": total,
            "vector": Step({"loss": Term(total.repeat(2))}),
            "names": Step({"tags": Term(total)}),
        }.get(self.wrong, Step(terms))

    def predict(self, batch):
        predictions = super().predict(batch)
        if self.wrong == "texts":
            return [one.answer for one in predictions]
        return predictions[1:] if self.wrong == "fewer" else predictions

    def metrics(self, predictions):
        return None if self.wrong == "metrics" else super().metrics(predictions)


class Source:
    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def read(self, modalities):
        if self.wrong == "raises":
            raise KeyError("beats")
        turns = (Message("user", "What?"), Message("assistant", "x"))
        items = {"image": (Image.new("L", (8, 8)),)}
        one, two = (Row(f"row-{k}", f"shelf {k}", turns, items, "ab"[k]) for k in (0, 1))
        rows = {
            "none": None,
            "rows": [one],
            "generator": {"train": (row for row in [one, two])},
            "dicts": {"train": [{"id": 1}]},
            "number": {"train": [replace(one, id=7)]},
            "twice": {"train": [one, one]},
            "loose": {"train": [replace(one, items={"image": "a.png"})]},
            "turns": {"train": [replace(one, messages=[{"role": "user", "content": "What?"}])]},
            "no_train": {"val": [one, two]},
            "nothing_in_val": {"train": [one, two], "val": [one, two]},
        }
        return rows.get(self.wrong, {"train": [one, two]})


class Nothing:
    def start(self, run):
        pass


def no_optimizer(parameters):
    return None
"""
ENCODER_GIVES = "it must give runner.protocols.Tokens with features [1, T, 8], T at least 1, and a bool mask [1, T]."
CLASSES = ["model=classify", "data=digits"]
OWN = ["model=wrong", "data=wrong"]


GIVES_WRONG: list[tuple[list[str], str]] = [
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
    (["projector=wrong"], "projector (of encoder.image) gave Tokens(features=float32 [1, 1, 64]"),
    (["projector=wrong", "projector.wrong=grid"], "(of encoder.image) gave the grid (2, 3) for 1 tokens; it must"),
    (["projector=wrong", "projector.wrong=terms"], "gave the terms size and its term_weights have none; they must"),
    (["projector=wrong", "projector.wrong=vector"], "gave float32 [] as its term size; it must give a number an"),
    (["fusion=wrong", "fusion.wrong=labels"], "fusion labels 0 positions of a row that has"),
    (["fusion=wrong", "fusion.wrong=mask"], "fusion gave Fused(embeddings=float32 [1, "),
    (["fusion=wrong", "fusion.wrong=ids"], "fusion gave input_ids that are not the text's in its order"),
    (["wrong=tensor", *CLASSES], f"encoder.image gave float32 [1, 1, 8]; {ENCODER_GIVES}"),
    (["fusion=wrong_pooled", *CLASSES], "fusion gave float32 [1, 4]; it must give floating-point numbers [1, 3]."),
    ([*OWN, "model.wrong=counts"], "model: counts gave a float; it must give a number for each term"),
    ([*OWN, "model.wrong=tensor"], "model: forward gave float32 []; it must give runner.protocols.Step"),
    ([*OWN, "model.wrong=vector"], "model: forward gave Step(a dict (loss: Term(float32 [2])))"),
    ([*OWN, "model.wrong=names"], "model: forward gave the terms tags and counts gave loss"),
    ([*OWN, "model.wrong=texts", "data.wrong=nothing_in_val"], "model: predict gave a list for 2 rows"),
    ([*OWN, "model.wrong=fewer", "data.wrong=nothing_in_val"], "model: predict gave a list for 2 rows"),
    (
        [*OWN, "model.wrong=metrics", "data.wrong=nothing_in_val"],
        "model: metrics gave None; it must give numbers by name.",
    ),
    ([*OWN, "data.wrong=none"], "data: read gave None; it must give a list of rows for each split by name, or"),
    ([*OWN, "data.wrong=generator"], "data: read gave a dict (train: a generator)"),
    (
        [*OWN, "data.wrong=dicts"],
        "a row of the train split that is a dict; it must be a runner.protocols",
    ),
    ([*OWN, "data.wrong=number"], "data: read gave a row of the train split whose id is 7 (shelf 0)"),
    ([*OWN, "data.wrong=twice"], "shelf 0: has the id `row-0`, which shelf 0 has already."),
    ([*OWN, "data.wrong=loose"], "whose items of image are no tuple (shelf 0, id row-0)"),
    ([*OWN, "data.wrong=turns"], "whose messages are no tuple of Message (shelf 0, id row-0)"),
    ([*OWN, "data.wrong=no_train"], "data: there is no row to train on."),
    (
        [*OWN, "tracker=wrong"],
        "tracker.mine: wrong_parts.Nothing lacks resume_key, log_metrics, log_samples, finish.",
    ),
    ([*OWN, "checkpoint=wrong"], "checkpoint: wrong_parts.Nothing lacks save, newest, load, state, steps, place"),
    ([*OWN, "schedule=wrong"], "schedule: wrong_parts.Nothing lacks __call__."),
    ([*OWN, "optimizer=wrong"], "optimizer gave None; it must give a torch.optim.Optimizer."),
]


@pytest.mark.parametrize(
    ("words", "said"),
    [pytest.param(*case, marks=[pytest.mark.zoo] if k % 3 else []) for k, case in enumerate(GIVES_WRONG)],
)
def test_a_part_that_gives_what_it_should_not_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    conf = my_conf(tmp_path / "my_conf")
    (conf / "wrong_parts.py").write_text(WRONG)
    for file, target, more in (
        ("encoder/image/wrong", "Encoder", "wrong: none"),
        ("projector/wrong", "Projector", "wrong: width"),
        ("fusion/wrong", "Fusion", "wrong: none"),
        ("fusion/wrong_pooled", "Pooled", ""),
        ("data/wrong", "Source", "wrong: nothing"),
        ("tracker/wrong", "Nothing", ""),
        ("checkpoint/wrong", "Nothing", ""),
        ("schedule/wrong", "Nothing", ""),
        ("optimizer/wrong", "no_optimizer", ""),
    ):
        (conf / file).parent.mkdir(parents=True, exist_ok=True)
        header = "# @package tracker.mine\n" if file.startswith("tracker") else ""
        (conf / f"{file}.yaml").write_text(f"{header}_target_: wrong_parts.{target}\n{more}\n")
    model = (conf / "model/tags.yaml").read_text().replace("my_tags.Tags", "wrong_parts.Objective")
    (conf / "model/wrong.yaml").write_text(
        model.replace("threshold: 0.5", "wrong: nothing").replace("val/all_right", "val/loss")
    )
    if words[0].startswith("wrong="):
        words = ["encoder/image=wrong", f"encoder.image.{words[0]}", *words[1:]]
    else:
        words = ["encoder/image=thumbnail", *words]
    small = [word for word in SMALL if not (word.startswith("llm.") and any(one.startswith("model=") for one in words))]
    small = [word for word in small if not (word.startswith("tracker=") and "tracker=wrong" in words)]
    if "data=wrong" in words:
        small += ["train.batch_size=2"]
    assert main(["train", f"--config-dir={conf}", *small, *words]) == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err
    assert len(err.splitlines()) == (3 if "cannot be used" in err else 1)


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
    conf = my_conf(tmp_path / "my_conf")
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


BARE = """
from my_encoder import Thumbnail


class Bare(Thumbnail):
    def forward(self, pixels):
        return super().forward(pixels).features
"""
BARE_YAML = "_target_: bare.Bare\nsize: 8\nhidden_size: 64\n"
SHORTER = {
    "train.max_steps=100": "train.max_steps=2 evaluation.predict_rows=4 llm.layers=1 llm.hidden_size=16",
    "train.max_steps=200": "train.max_steps=20",
    "train.max_steps=40": "train.max_steps=2 evaluation.predict_rows=4",
}
"""What takes seconds and shows nothing that less would not."""
COMMANDS = commands(DOCS)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The docs' commands, one after the other in one folder, each a process of its own."""
    folder = tmp_path_factory.mktemp("walk")
    conf = write(folder / "my_conf", documented())
    (folder / "beats.py").write_text(script_of(DOCS, "beats.py"))
    (folder / "new.jsonl").write_text(json.dumps({"id": "new", "ecg": [[0.0, 1.9, -1.5, -0.6, 1.9, -1.0] * 5]}) + "\n")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            if "encoder/image=bare" in command.text:
                write(conf, {"bare.py": BARE, "encoder/image/bare.yaml": BARE_YAML})
            printed[command.text] = run(command, SHORTER)
    yield Walk(folder, printed)


def test_the_docs_have_commands_of_every_kind() -> None:
    assert len(COMMANDS) == 14
    assert {shlex.split(one.text)[0] for one in COMMANDS} == {"runner", "python", "grep"}
    assert all(one.shown for one in COMMANDS if not one.text.startswith("python"))


@pytest.mark.zoo
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{k}" for k in range(len(COMMANDS))])
def test_a_command_of_the_docs_prints_what_stands_there(walk: Walk, command: Command) -> None:
    hold(command, *walk.printed[command.text])


@pytest.mark.zoo
def test_the_tracker_got_what_metrics_jsonl_has(walk: Walk) -> None:
    """Of both lives of the run; the second one's first process is its only one."""
    run = walk.folder / "outputs/tags"
    told = [json.loads(line) for line in (run / "told.jsonl").read_text().splitlines()]
    assert [one for one in told if "name" in one or "status" in one] == [
        {"name": "run", "lr": 0.01}, {"status": "finished"}, {"name": "run", "lr": 0.01}, {"status": "finished"},
    ]  # fmt: skip
    logged = [
        {"step": line["step"]}
        | {f"{line['split']}/{name}": value for name, value in line.items() if name not in ("step", "split")}
        for line in lines_of(run)
    ]
    metrics = [one for one in told if "train/loss" in one or "val/loss" in one]
    assert without_speed(metrics) == without_speed(logged) and len(metrics) == 18
    samples = [one for one in told if "id" in one]
    assert [one["step"] for one in samples] == [120] * 8 + [160] * 8
    assert samples[1] == {"step": 120, "id": "beat-5", "answer": "strong", "truth": "strong"}


def without_speed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if not name.endswith("_per_s")} for line in lines]


@pytest.mark.zoo
def test_two_processes_have_the_curve_of_one_with_parts_from_outside(walk: Walk) -> None:
    (text,) = [one.text for one in COMMANDS if "cluster=ddp" in one.text]
    words = [word for word in shlex.split(text)[2:] if not word.startswith(("cluster=", "hydra.run.dir", "data.path"))]
    alone = words.index("--config-dir")
    words[alone + 1] = str(walk.folder / words[alone + 1])
    summary = runner.train([*words, f"data.path={walk.folder}/beats.sqlite", "hydra.run.dir=alone"])
    assert summary["last"]["val/all_right"] == 1.0
    one, two = train_lines(Path("alone")), train_lines(walk.folder / "outputs/tags")
    assert [line["step"] for line in one[:12]] == [line["step"] for line in two[:12]]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one[:12], two[:12], strict=True)) <= 1e-5


@pytest.mark.zoo
def test_evaluate_and_generate_use_a_run_of_parts_from_outside(walk: Walk) -> None:
    run = walk.folder / "outputs/tags"
    found = read_json(run / "evaluations/val.json")
    best = {name: value for name, value in read_json(run / "summary.json")["best"].items() if name != "step"}
    assert found["metrics"] == pytest.approx(best, rel=1e-6)  # two processes add their sums in another order
    assert (found["step"], found["rows"], found["predicted"]) == (120, 60, 60)
    assert json.loads((walk.folder / "answers.jsonl").read_text())["answer"] == "fast, strong"
    predictor = runner.Predictor.from_run(run, config_dir=walk.folder / "my_conf")
    assert predictor(ecg=[[0.0, 0.8, 0.9, 0.1, -0.8, -1.0, -0.3, 0.7] * 3]) == ""


@pytest.mark.zoo
def test_a_run_goes_on_to_the_same_bits_through_a_checkpointer_of_ones_own(walk: Walk, tmp_path: Path) -> None:
    """Past a newest file that is broken, and past what a killed save left."""
    words = [
        "--config-dir", str(walk.folder / "my_conf"), "model=tags", "+encoder/ecg=mine", "data=table",
        f"data.path={walk.folder}/beats.sqlite", "tracker=none", "checkpoint=one_file", "schedule=constant",
        "train.batch_size=16", "train.max_steps=9", "train.eval_every=3", "checkpoint.keep_last=9",
    ]  # fmt: skip
    runner.train([*words, "hydra.run.dir=whole"])
    runner.train([*words, "hydra.run.dir=other", "train.max_steps=6"])
    kept = Path("other/checkpoints")
    assert sorted(file.name for file in kept.iterdir()) == ["00000003.safetensors", "00000006.safetensors"]
    newest = kept / "00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (kept / "00000009.part").write_bytes(b"half")
    with pytest.raises(Mistake, match="00000006.safetensors was passed over: it is not whole"):
        runner.train([*words, "resume=other"])
    with pytest.raises(Mistake, match="00000006.safetensors is not a whole checkpoint"):
        runner.train([*words, f"resume={newest}"])
    runner.train([*words, "hydra.run.dir=other", "resume=auto"])
    runner.train([*words, "hydra.run.dir=fork", f"resume={kept / '00000003.safetensors'}"])
    checkpointer = build.config.build({"_target_": "my_checkpoint.OneFile"}, (walk.folder / "my_conf",))
    whole = checkpointer.load(checkpointer.newest(Path("whole"))[0])
    for again in ("other", "fork"):
        path, passed_over = checkpointer.newest(Path(again))
        assert (path.name, passed_over) == ("00000009.safetensors", [])
        content = checkpointer.load(path)
        for part in ("trainable", "optimizer"):
            before, after = getattr(whole, part), getattr(content, part)
            assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not list(kept.glob("*.part"))
    assert lines_of(Path("other"))[-1] == lines_of(Path("whole"))[-1]
    assert read_json(Path("fork/environment.json"))["parent"] == "other/checkpoints/00000003.safetensors"


ANSWER = """
import torch
from torch import nn

from runner.protocols import Decoding, Prediction, Step, Term


class Answer(nn.Module):
    \"\"\"Answers in text, and keeps what it reads small: two terms.\"\"\"

    metric_names = ("share_right",)
    splits_exactly = True

    def __init__(self, llm, encoders, projectors, fusion, chat, small: float) -> None:
        super().__init__()
        self.llm, self.chat, self.fusion, self.small = llm, chat, fusion, small
        self.encoder, self.projector = nn.ModuleDict(encoders), nn.ModuleDict(projectors)
        self.decoding = Decoding(max_new_tokens=12)

    def counts(self, batch):
        return {"answer": float((batch.labels[:, 1:] != -100).sum()), "size": sum(batch.weights)}

    def forward(self, batch):
        fused = self.fuse(batch, "right")
        answer = self.llm.loss_sum(
            fused.labels,
            inputs_embeds=fused.embeddings,
            attention_mask=fused.attention_mask,
            position_ids=fused.position_ids,
        )
        seen = (fused.embeddings.float() * fused.attention_mask.unsqueeze(-1)).square().sum((1, 2))
        weights = torch.tensor(batch.weights, device=seen.device)
        return Step({"answer": Term(answer), "size": Term((seen * weights).sum(), weight=self.small)})

    @torch.no_grad()
    def predict(self, batch):
        fused = self.fuse(batch, "left")
        tokenizer = self.chat.tokenizer
        answers = self.llm.generate(
            self.decoding, self.chat.end_of_turn_ids, tokenizer.pad_token_id,
            inputs_embeds=fused.embeddings, attention_mask=fused.attention_mask,
        )
        return [
            Prediction(row.id, "", tokenizer.decode(answer, skip_special_tokens=True), self.chat.truth(row), row.items)
            for row, answer in zip(batch.rows, answers, strict=True)
        ]

    def metrics(self, predictions):
        return {"share_right": sum(one.answer == one.truth for one in predictions) / max(len(predictions), 1)}

    def fuse(self, batch, side):
        device = self.llm.embedding.weight.device
        streams = {}
        for name, stream in batch.streams.items():
            inputs = {key: tensor.to(device) for key, tensor in stream.inputs.items()}
            streams[name] = self.projector[name](self.encoder[name](**inputs))
        return self.fusion(self.llm.embed(batch.input_ids.to(device)), batch, streams, side)
"""
ANSWER_YAML = """# @package _global_
defaults:
  - /encoder/image: null
  - /projector: linear
  - /fusion: interleave
  - /llm: tiny
  - /lora: none
  - _self_
model:
  _target_: my_answer.Answer
  small: 1.0e-5
checkpoint:
  monitor: val/share_right
  mode: max
"""


@pytest.mark.zoo
def test_an_objective_with_a_language_model_learns_on_two_processes_too(walk: Walk, tmp_path: Path) -> None:
    conf = my_conf(tmp_path / "my_conf")
    (conf / "my_answer.py").write_text(ANSWER)
    (conf / "model/answer.yaml").write_text(ANSWER_YAML)
    words = [
        "model=answer", "+encoder/ecg=mine", "data=table", f"data.path={walk.folder}/beats.sqlite", "tracker=none",
        "train.max_steps=30", "train.batch_size=16", "train.log_every=1", "optimizer.lr=3e-3", "llm.layers=1",
    ]  # fmt: skip
    runs = tmp_path / "one", tmp_path / "two"
    assert ranks.train(runs[0], words, config_dir=conf) == [0]
    assert ranks.train(
        runs[1], [*words, "train.micro_batch_size=4", "train.max_steps=3", "schedule=constant"], 2, config_dir=conf
    ) == [0, 0]
    assert ranks.train(tmp_path / "three", [*words, "train.max_steps=3", "schedule=constant"], config_dir=conf) == [0]
    last = lines_of(runs[0])[-1]
    assert last["share_right"] > 0.9
    assert last["loss"] == pytest.approx(last["answer"] + 1e-5 * last["size"], rel=1e-6) and last["size"] > 100
    curves = [[line["loss"] for line in train_lines(tmp_path / name)] for name in ("two", "three")]
    assert curves[0] == pytest.approx(curves[1], abs=5e-6) and len(curves[0]) == 3
    assert main(["evaluate", f"--config-dir={conf}", f"run={runs[0]}"]) == 0
    found = read_json(runs[0] / "evaluations/val.json")
    assert found["metrics"]["val/share_right"] == last["share_right"]
    predictor = runner.Predictor.from_run(runs[0], config_dir=conf)
    assert predictor(prompt="<ecg> What is it?", ecg=[[0.0, 1.9, -1.5, -0.6, 1.9, -1.0] * 5]) == "fast, strong"


TROUBLE = """
import time

from my_tracker import Lines


class Raising(Lines):
    def log_metrics(self, metrics, step):
        raise RuntimeError(f"no room for step {step}")


class Hanging(Lines):
    def log_metrics(self, metrics, step):
        time.sleep(60)
"""
TROUBLE_YAML = """# @package _global_
defaults: [lines]
tracker:
  raising: {_target_: trouble.Raising, file: raising.jsonl}
  hanging: {_target_: trouble.Hanging, file: hanging.jsonl}
"""


@pytest.mark.zoo
def test_trackers_that_raise_or_hang_do_not_hurt_a_run(
    walk: Walk, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "Isolated", partial(Isolated, deadline_s=1.0))
    conf = my_conf(tmp_path / "my_conf")
    (conf / "trouble.py").write_text(TROUBLE)
    (conf / "tracker/trouble.yaml").write_text(TROUBLE_YAML)
    words = ["model=tags", "+encoder/ecg=mine", "data=table", f"data.path={walk.folder}/beats.sqlite"]
    words += ["train.max_steps=5", "train.log_every=1", "tracker=trouble", "hydra.run.dir=run"]
    assert main(["train", f"--config-dir={conf}", *words]) == 0
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    for sentence in (
        "Tracker raising failed in log_metrics with RuntimeError: no room for step 1. metrics.jsonl has everything.",
        "Tracker raising failed 3 times in a row and is switched off.",
        "Tracker hanging did not finish within 1 s and is left behind",
    ):
        assert printed.count(sentence) == 1 and sentence in Path("run/train.log").read_text()
    assert read_status(Path("run"))["state"] == "finished" and len(lines_of(Path("run"))) == 6
    told = {name: Path(f"run/{name}.jsonl").read_text().splitlines() for name in ("told", "raising", "hanging")}
    assert [json.loads(line).get("status") for line in told["raising"]] == [None, "finished"]
    assert len(told["hanging"]) == 1 and json.loads(told["told"][-1]) == {"status": "finished"}
    assert sum("loss" in line for line in told["told"]) == 6


def test_two_trackers_may_sit_side_by_side(tmp_path: Path) -> None:
    conf = my_conf(tmp_path / "my_conf")
    composed = build.config.compose("train", ["tracker=lines_and_comet"], conf)
    assert {name: node["_target_"] for name, node in composed.tree["tracker"].items()} == {
        "lines": "my_tracker.Lines", "comet": "runner.trackers.comet.Comet",
    }  # fmt: skip
