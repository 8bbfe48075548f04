"""Every mistake of a config is told in a line or two that says how to mend it: exit code 2, no traceback, no folder."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.cli import main

ENCODER = """
from typing import Annotated
from annotated_types import Ge
from torch import nn

class MeanColour(nn.Module):
    def __init__(self, dim: Annotated[int, Ge(1)], size: int, colour: str = "red") -> None:
        super().__init__()
"""
FILES = {
    "my_encoder.py": ENCODER,
    "broken.py": "class Broken(:\n",
    "encoder/image/mine.yaml": "_target_: my_encoder.MeanColour\ndim: 3\nsize: 8\n",
    "encoder/image/typo.yaml": "_target_: my_encoder.MeanColour\ndim: 3\nsize: 8\ncolor: blue\n",
    "encoder/image/short.yaml": "_target_: my_encoder.MeanColour\ndim: 3\n",
    "encoder/image/width.yaml": "_target_: my_encoder.MeanColour\ndim: 3\nsize: 8\nllm_width: 64\n",
    "encoder/image/lost.yaml": "_target_: my_encoder.MeanColor\ndim: 3\n",
    "encoder/image/broken.yaml": "_target_: broken.Broken\n",
    "encoder/image/missing.yaml": "_target_: my_encoder.MeanColour\ndim: ???\nsize: 8\n",
    "encoder/image/secret.yaml": "_target_: my_encoder.MeanColour\ndim: 3\nsize: 8\nhf_token: abc\n",
    "encoder/image/shell.yaml": "_target_: os.system\ncommand: touch hurt\n",
    "encoder/image/load.yaml": "_target_: torch.load\nf: x\n",
    "encoder/image/url.yaml": "_target_: urllib.request.urlopen\nurl: x\n",
    "encoder/image/eval.yaml": "_target_: builtins.eval\nsource: x\n",
    "encoder/image/main.yaml": "_target_: runner.cli.main\n",
    "encoder/image/private.yaml": "_target_: torch.nn.modules.module._WrappedHook\n",
    "encoder/image/room.yaml": "_target_: runner.optimizer.adamw\n",
    "encoder/image/imported.yaml": "_target_: runner.encoders.image.np.load\n",
    "encoder/image/inner.yaml": "_target_: my_encoder.MeanColour\ndim: 3\nsize: 8\ncolour: {_target_: os.system}\n",
    "experiment/typo.yaml": "# @package _global_\ntrain: {max_stepz: 3}\n",
    "experiment/option.yaml": "# @package _global_\ndefaults: [override /fusion: gatd]\ntrain: {max_steps: 3}\n",
    "experiment/syntax.yaml": "# @package _global_\ntrain:\n  max_steps: 3\n   batch_size: 4\n",
    "experiment/variable.yaml": "# @package _global_\nname: ${oc.env:NO_SUCH_VARIABLE}\ntrain: {max_steps: 3}\n",
    "experiment/nowhere.yaml": "# @package _global_\nseed: ${train.sead}\ntrain: {max_steps: 3}\n",
    "experiment/itself.yaml": "# @package _global_\ndefaults: [/experiment: itself]\nname: x\n",
    "experiment/round.yaml": "# @package _global_\ndefaults: [/experiment@a: back]\n",
    "experiment/back.yaml": "# @package _global_\ndefaults: [/experiment@b: round]\n",
    "experiment/anchor.yaml": "# @package _global_\nname: &a [*a]\n",
    "experiment/bytes.yaml": "# @package _global_\nname: !!binary aGVsbG8=\ntrain: {max_steps: 3}\n",
    "experiment/half.yaml": '# @package _global_\nname: "\\ud800"\ntrain: {max_steps: 3}\n',
    "experiment/nul.yaml": "# @package _global_\nname: a\0b\n",
    "experiment/brace.yaml": "# @package _global_\nname: ${\n",
    "experiment/hydra.yaml": "# @package _global_\nhydra: {run: 5}\n",
    "experiment/header.yaml": "# @package\nname: a\n",
    "experiment/below.yaml": "name: x\ntrain: {max_steps: 3}\n",
    "experiment/twice.yaml": "# @package _global_\nname: a\nname: b\n",
}

MISTAKES = [
    # (words, what must be said)
    ("train.max_step=3", ["train.max_step: no such key", "did you mean train.max_steps?"]),
    ("data.paths=${oc.env:NO_SUCH_VARIABLE}", ["data.paths: ${oc.env:NO_SUCH_VARIABLE} does not resolve"]),
    ("++typo={} seed=${oc.env:NO_SUCH_VARIABLE}", ["typo: no such key", "NO_SUCH_VARIABLE is not set"]),
    ("~optimizer.betas.0", ["Hydra cannot compose this"]),
    ("lr=0.1", ["lr: no such key", "did you mean optimizer.lr?"]),
    ("+typo=3", ["typo: no such key"]),
    ("++encoder.image.sizes=3", ["encoder.image.sizes: no such key", "did you mean encoder.image.size?"]),
    ("fusin=prefix", ["did you mean fusion?"]),
    ("fusion=prefx", ["fusion=prefx: no such option", "did you mean prefix?", "interleave"]),
    ("fusions/image=prefix", ["fusions/image: no such config group"]),
    ("encoders/image=patch", ["did you mean encoder/image?"]),
    ("trian seed=1", ["trian: no such verb; did you mean train?"]),
    ("--confg-dir x", ["did you mean --config-dir?"]),
    ("train seed", ["seed: an override is written key=value"]),
    ("optimizer.lr=[1,2", ["optimizer.lr=[1,2: Hydra cannot read it", "Quote the value"]),
    ("seed=1,2", ["several values", "-m"]),
    ("precision=fp32,bf16", ["several values", "-m"]),
    ("train.max_steps=abc", ['train.max_steps: "abc" is wrong; it must be a whole number, at least 1, or null.']),
    ("train.max_steps=1.5", ["a whole number"]),
    ("optimizer.lr=inf", ["optimizer.lr: Infinity is wrong; it must be a number", "and finite."]),
    ("optimizer.weight_decay=nan", ["optimizer.weight_decay: NaN is wrong"]),
    ("optimizer.betas=[0.9,nan]", ["optimizer.betas: [0.9, NaN] is wrong"]),
    ("train.clip_norm=inf early_stopping.min_delta=inf", ["train.clip_norm: Infinity", "min_delta: Infinity"]),
    ("lora=default lora.alpha=1e999", ["lora.alpha: Infinity is wrong"]),
    ("llm.initializer_range=-inf", ["llm.initializer_range: -Infinity is wrong"]),
    ("train.log_ids=yes", ["true or false"]),
    ("train.batch_size=0", ["train.batch_size: 0 is wrong", "at least 1"]),
    ("encoder.image.dropout=1.5", ["encoder.image.dropout: 1.5", "less than 1"]),
    ("encoder.image.channels=2", ["one of 1, 3"]),
    ("checkpoint.keep_last=1", ["checkpoint.keep_last: 1", "at least 2"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas: [0.9]", "2 of them"]),
    ("data.over_length=dropp", ["did you mean drop?"]),
    ("train=5", ["train: 5 is no group of settings"]),
    ("train.max_steps.more=5", ["train.max_steps"]),
    ("encoder.image=5", ["encoder.image: 5 is no part", "encoder/image=OPTION"]),
    ("lora.r=8", ["lora.r cannot be set: nothing sits at lora", "lora=OPTION"]),
    ("name=a/b", ["name:", "folder"]),
    ("data=jsonl", ["data.path needs a value"]),
    ("data=jsonl data.path=conf/encodr", ["data.path: there is no conf/encodr", "(there is conf/encoder)"]),
    ("data=jsonl data.path=. +data.fields.imag=x", ["data.fields.imag: a row has no such field; did you mean image?"]),
    ("llm=pretrained llm.path=./nowhere", ["llm.path: there is no ./nowhere"]),
    ("lora=default lora.init=nowhere", ["lora.init: there is no nowhere"]),
    ("resume=nowhere", ["resume: there is no nowhere"]),
    ("--config-dir nowhere seed=1", ["--config-dir: there is no folder nowhere"]),
    ("--config-name trainn", ["--config-name: there is no config trainn; did you mean train?"]),
    ("--config-path x", ["--config-dir"]),
    ("train.epochs=3", ["train.max_steps=450 and train.epochs=3 are both set", "null"]),
    ("train.max_steps=null", ["both null", "exactly one"]),
    ("train.batch_size=64 train.micro_batch_size=7", ["not a multiple of train.micro_batch_size=7"]),
    ("cluster.num_processes=2", ["cluster=local is one process"]),
    ("precision=fp16 cluster.device=cpu", ["precision=fp16 needs an NVIDIA GPU"]),
    ("precision=tf32 cluster.device=cpu", ["precision=tf32 needs an NVIDIA GPU"]),
    ("model=chat fusion=prefix", ["fusion: model=chat has no such seat; it has llm, lora"]),
    ("model=chat +encoder/image=patch", ["encoder: model=chat has no such seat"]),
    ("model=chat encoder.image.size=3", ["nothing sits at encoder.image"]),
    ("tracker=comet tracker.comet.api_key=abc", ["tracker.comet.api_key: a secret", "${oc.env:NAME}"]),
    ("tracker=comet tracker.comet.api_key=${oc.env:KEY,abc}", ["tracker.comet.api_key: a secret"]),
    ("~train", ["train cannot be taken away"]),
    ("~train.batch_size", ["train.batch_size is missing"]),
    ("~encoder/audios", ["no such config group"]),
    ("model=null", ["nothing sits at model", "model=OPTION"]),
    ("experiment=null train.epochs=1 model=null", ["model is missing", "model=OPTION"]),
    ("llm=null", ["llm is missing: model=instruct needs"]),
    ("precision=null", ["precision is missing", "precision=OPTION"]),
    ("optimizer=null", ["nothing sits at optimizer"]),
    ("encoder.image._target_=torch.nn.Sigmoidd", ["torch.nn.Sigmoidd"]),
    ("encoder.image._target_=runner.encoders.image.Patchh", ["defines no Patchh; did you mean Patch?"]),
    ("encoder.image._target_=runner.encoder.image.Patch", ["may not be built here", "runner.encoders"]),
    ("encoder.image._target_=5", ["is no name of a class"]),
    ("-m seed=1,2 trainn.max_steps=3", ["trainn.max_steps: no such key"]),
    ("-m fusion=prefix,gatd", ["fusion=gatd: no such option"]),
    ("-m fusion=prefix,null", ["null cannot be one of several options"]),
    ("-m seed=-1,-2", ["seed: -1", "seed: -2"]),
    ("-m optimizer.lr=interval(0.1,0.2)", ["basic sweeper takes no interval", "range("]),
    ("-m --cfg job", ["Only one of"]),
    ("-m seed=range(0,0)", ["seed=range(0,0): the sweep has no value."]),
    ("-m experiment=glob(zz*)", ["experiment=glob(zz*): the sweep has no value."]),
    ("-m seed=range(0,1,1e-320)", ["seed=range(0,1,1e-320): it has more than 10,000 values."]),
    ("-m seed=shuffle(range(0,inf))", ["it has more than 10,000 values."]),
    ("-m fusion=range(0,1,1e-320)", ["it has more than 10,000 values."]),
    ("-m seed=range(0,3,0)", ["seed=range(0,3,0): it is no range of numbers"]),
    ("-m seed=range(0,nan)", ["seed=range(0,nan): it is no range of numbers"]),
    ("-m seed=range(0,101) optimizer.lr=range(1,101)", ["The sweep has 10,100 jobs, and 10,000 is the most."]),
    ("encoder=null", ["encoder=null: encoder holds several options. Write encoder/image=null."]),
    ("encoder=patch", ["encoder=patch: encoder holds several options. Write ", "encoder/image=patch"]),
    ("data=jsonl data.path=~/rows.jsonl", ["data.path: there is no HOME/rows.jsonl"]),
    ("llm=pretrained llm.path=~/model", ["llm.path: there is no HOME/model"]),
    ("lora=default lora.init=~/a resume=~/b", ["lora.init: there is no HOME/a", "resume: there is no HOME/b"]),
    ("hydra.run.dir=${nope}", ["hydra.run.dir: it does not resolve: Interpolation key 'nope' not found."]),
    ("hydra.searchpath=5", ["hydra.searchpath must be a list"]),
    ("name=a\udcff", ["'name=a\\udcff' holds what is no UTF-8 text"]),
    ("name=a\0", ["'name=a\\x00' holds"]),
    ("resume=" + 5000 * "a", ["resume: there is no aaa"]),
    ("experiment=" + 5000 * "a", ["experiment=aaa", "File name too long."]),
    ("--config-dir " + 5000 * "a", ["--config-dir: there is no folder aaa"]),
    ("--config-name " + 5000 * "a", ["File name too long"]),
    ("seed=" + 2000 * "[" + 2000 * "]", ["seed=[[[", "Hydra cannot read it"]),
    ("seed=" + 5000 * "9", ["seed=999", "Hydra cannot read it"]),
    ("+a=" + 300 * "{a:" + "1" + 300 * "}", ["it nests too deep"]),
    ("--cfg job --package nope", ["package 'nope' not found"]),
    ("-sc nope", ["Expecting one subcommand"]),
    ("--config-dir conf", ["--config-dir: conf holds no .yaml"]),
    ("--config-dir /usr/lib", ["--config-dir: /usr/lib has more than 2,000 folders"]),
    # the folder of a user's own, FILES
    (
        "MINE encoder/image=typo",
        ["encoder.image.color: no such key (in encoder/image/typo.yaml); did you mean encoder.image.colour?"],
    ),
    ("MINE encoder/image=short", ["encoder.image.size is missing: my_encoder.MeanColour needs it"]),
    ("MINE encoder/image=width", ["encoder.image.llm_width is filled in when the run is built"]),
    ("MINE encoder/image=lost", ["defines no MeanColor; did you mean MeanColour?"]),
    ("MINE encoder/image=broken", ["broken.py:1 is not Python"]),
    ("MINE encoder/image=missing", ["encoder.image.dim needs a value"]),
    ("MINE encoder/image=secret", ["encoder.image.hf_token: a secret"]),
    ("MINE encoder/image=mine encoder.image.dim=0", ["encoder.image.dim: 0 is wrong", "at least 1"]),
    ("MINE encoder/image=shell", ["os.system may not be built"]),
    ("MINE encoder/image=load", ["torch.load may not be built"]),
    ("MINE encoder/image=url", ["urllib.request.urlopen may not be built"]),
    ("MINE encoder/image=eval", ["builtins.eval may not be built"]),
    ("MINE encoder/image=main", ["runner.cli.main may not be built"]),
    ("MINE encoder/image=private", ["_WrappedHook is private"]),
    ("MINE encoder/image=room", ["runner.optimizer.adamw may not be built here"]),
    ("MINE encoder/image=imported", ["runner.encoders.image.np"]),
    ("MINE encoder/image=inner", ["encoder.image.colour._target_: os.system may not be built"]),
    ("MINE experiment=typo", ["train.max_stepz: no such key (in experiment/typo.yaml); did you mean train.max_steps?"]),
    ("MINE experiment=option", ["experiment/option.yaml: fusion=gatd: no such option", "prefix"]),
    ("MINE experiment=syntax", ["syntax.yaml:4 is not YAML"]),
    ("MINE experiment=variable", ["name: ${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE is not set"]),
    ("MINE experiment=nowhere", ["seed: ${train.sead} does not resolve"]),
    ("MINE experiment=itself", ["experiment/itself.yaml: it nests too deep, or leads back to itself."]),
    ("MINE experiment=round", ["experiment/round.yaml: it nests too deep, or leads back to itself."]),
    ("MINE experiment=anchor", ["experiment/anchor.yaml: it nests too deep"]),
    ("MINE experiment=bytes", ["name: b'hello' is no text"]),
    ("MINE experiment=half", ["name: '\\ud800' is no text"]),
    ("MINE experiment=nul", ["nul.yaml is not YAML"]),
    ("MINE experiment=brace", ["experiment/brace.yaml: no viable alternative"]),
    ("MINE experiment=hydra", ["'experiment/hydra'", "int is not a subclass of RunDir"]),
    ("MINE experiment=header", ["experiment/header.yaml: Expected header format"]),
    ("MINE experiment=below", ["experiment/below.yaml: its keys land under `experiment`", "# @package _global_"]),
    ("MINE experiment=twice", ["twice.yaml:3", "duplicate key"]),
]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with something beside which a wrong path may be near."""
    (tmp_path / "conf" / "encoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(words, said, id=ascii(words[:60]), marks=[pytest.mark.zoo] if k % 2 else [])
        for k, (words, said) in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_told(
    words: str, said: list[str], mine: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main([word.replace("MINE", f"--config-dir={mine}") for word in words.split()])
    out, err = capfd.readouterr()
    assert code == 2, err
    for part in said:
        assert part.replace("HOME", str(Path.home())) in err
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) <= 3, err
    assert sorted(one.name for one in here.iterdir()) == ["conf"]


def test_a_fault_of_ours_is_told_with_its_traceback_in_a_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("llm")

    monkeypatch.setattr("tempfile.tempdir", str(here))
    monkeypatch.setattr("runner.config.Composer.check", broken)
    assert main(["show"]) == 1
    err = capfd.readouterr().err
    file = next(here.glob("runner-*.log"))
    assert err == f"KeyError: 'llm'. This is a fault of runner; please report it with its traceback, {file}.\n"
    assert "in broken" in file.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data.max_length=100000", "data.max_length=100000: the language model takes 1024 tokens. Set at most that."),
        ("model.max_new_tokens=1020", "with model.max_new_tokens=1020 that is more than the 1024"),
    ],
)
def test_more_tokens_than_the_model_takes(words: str, said: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([words]) == 2
    err = capfd.readouterr().err
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("hydra.run.dir=file", "file cannot be a run's folder (File exists: file)"),
        ("hydra.run.dir=file/below", "file/below cannot be a run's folder (Not a directory"),
        ("hydra.run.dir=/proc/nowhere", "/proc/nowhere cannot be a run's folder ("),
        ("hydra.run.dir=" + 5000 * "a", "cannot be a run's folder (File name too long"),
        ("name=file", "outputs/file cannot be a run's folder (Not a directory"),
        ("-m seed=1,2 hydra.sweep.dir=file", "file cannot be a run's folder (File exists: file)"),
        ("-m seed=1,2 name=file", "multirun/file cannot be a run's folder (Not a directory"),
        ("hydra.run.dir=remains", "remains holds checkpoints and metrics.jsonl but no config.yaml"),
        ("resume=auto hydra.run.dir=remains", "remains holds checkpoints and metrics.jsonl but no config.yaml"),
    ],
)
def test_a_folder_that_no_run_can_have_is_told(
    words: str, said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in ("file", "outputs/file", "multirun/file", "remains/metrics.jsonl"):
        (here / place).parent.mkdir(exist_ok=True)
        (here / place).write_text("kept")
    (here / "remains" / "checkpoints").mkdir()
    before = sorted(here.rglob("*"))
    assert main(words.split()) == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


def test_a_full_disk_is_a_fault(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("runner.folders.TemporaryFile", full)
    assert main(["hydra.run.dir=mine"]) == 1
    assert capfd.readouterr().err == (
        "mine: the disk is full (No space left on device: mine). Make room, or give another by hydra.run.dir.\n"
    )


def test_a_config_dir_whose_links_lead_round_is_refused_soon(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "up").symlink_to("../..")
    (here / "mine" / "experiment" / "down").symlink_to("../..")
    began = time.monotonic()
    assert main(["show", "--config-dir=mine", "seed=1"]) == 2
    assert time.monotonic() - began < 2
    assert "--config-dir: mine has more than 2,000 folders below it" in capfd.readouterr().err


def test_all_mistakes_are_told_at_once(here: Path, mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (
        "train.max_step=3 fusion=gatd train.batch_size=0 experiment=typo encoder/image=short bad encoder.image.dim=x "
        "train.epochs=1"
    )
    assert main(["train", f"--config-dir={mine}", *words.split()]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    for start in (
        "train.max_step:",
        "fusion=gatd:",
        "train.batch_size:",
        "train.max_stepz:",
        "encoder.image.size",
        "bad:",
        "encoder.image.dim:",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 7


def test_names_that_only_look_like_secrets_are_none(here: Path) -> None:
    from runner.resolving import is_secret

    for name in (
        "encoder.image.heads",
        "model.max_new_tokens",
        "llm.key_value_heads",
        "keys",
        "llm.pad_token",
        "monkey",
    ):
        assert not is_secret(name, "abc"), name
    for name in ("api_key", "tracker.comet.api_key", "hf_token", "password", "db_password", "client_secret", "token"):
        assert is_secret(name, "abc"), name


@pytest.mark.parametrize(
    "words", ["train.max_step=3 fusion=gatd", "data=jsonl data.path=nowhere train.batch_size=0", "trian"]
)
def test_the_command_tells_mistakes_soon(words: str, here: Path) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "runner", *words.split()], capture_output=True, text=True)
    print(f"{words}: {time.monotonic() - began:.2f} s")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_mistake_is_told_without_torch(here: Path) -> None:
    code = "import sys; from runner.cli import main; main(['seed=-1']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
