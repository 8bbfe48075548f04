"""The command line: verbs, Hydra's features, folders, sweeps, exit codes, completion and the same from Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import runner
from runner import cli
from runner.config import Composed
from runner.protocols import Fault, Mistake, Stopped

Verb = Callable[[Composed, Path], dict[str, Any]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Composed, Path]]:
    """The runs that a stand-in for `train` was called for. It fails as the run's name says."""
    calls: list[tuple[Composed, Path]] = []

    def train(composed: Composed, folder: Path) -> dict[str, Any]:
        calls.append((composed, folder))
        kind, _, seed = composed.tree["name"].partition("-")
        if not seed or composed.tree["seed"] == int(seed):
            if kind == "mistake":
                raise Mistake("train.jsonl:3 is no row.")
            if kind == "fault":
                raise Fault("the disk is full.")
            if kind == "bug":
                raise KeyError("oh")
            if kind == "stopped":
                raise Stopped(15, "stopped at step 3.")
        return {"seed": composed.tree["seed"]}

    stand_in = ModuleType("stand_in_for_train")
    stand_in.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_for_train", stand_in)
    monkeypatch.setitem(cli.VERBS, "train", "stand_in_for_train:train")
    return calls


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def test_help_is_quick_and_lists_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"], []):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in cli.VERBS)
    quick = "sorted({'hydra', 'omegaconf', 'torch'} & set(sys.modules))"
    code = f"import sys; from runner.cli import main; main(['--help']); print({quick})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")


def test_no_verb_means_train(ran: list[tuple[Composed, Path]]) -> None:
    assert cli.main(["precision=bf16", "seed=3"]) == 0
    assert cli.main(["+train.max_steps=3"]) == 0
    assert cli.main(["--config-name", "train", "seed=4"]) == 0
    assert [composed.tree["seed"] for composed, _ in ran] == [3, 0, 4]
    assert ran[0][0].choices["precision"] == "bf16"


def test_one_run_has_one_folder_and_nothing_of_hydra(ran: list[tuple[Composed, Path]], here: Path) -> None:
    for _ in range(2):
        assert cli.main(["train", "name=chữ số, 1"]) == 0
    folders = [folder for _, folder in ran]
    assert folders[0] != folders[1]
    assert {folder.parent for folder in folders} == {Path("outputs/chữ số, 1")}
    assert not [file for file in here.rglob("*") if file.is_file()]


def test_a_folder_of_the_users_choice(ran: list[tuple[Composed, Path]]) -> None:
    assert cli.main(["hydra.run.dir=out/lr=0.1,bs=2/0"]) == 0
    assert cli.main(["hydra.run.dir=out/${name}/${now:%Y}", "name=mine"]) == 0
    assert ran[0][1] == Path("out/lr=0.1,bs=2/0")
    assert ran[1][1].parent == Path("out/mine")
    assert ran[1][1].name.isdigit()


def test_flags_may_stand_anywhere(ran: list[tuple[Composed, Path]], here: Path) -> None:
    (here / "my_conf/experiment").mkdir(parents=True)
    (here / "my_conf/experiment/mine.yaml").write_text("# @package _global_\nname: mine\ntrain: {max_steps: 3}\n")
    assert cli.main(["train", "seed=1", "--config-dir", "my_conf", "experiment=mine"]) == 0
    assert ran[0][0].tree["name"] == "mine"
    assert cli.main(["train", "experiment=mine", "-m", "--config-dir=my_conf", "seed=1,2"]) == 0
    assert [composed.tree["seed"] for composed, _ in ran[1:]] == [1, 2]


def test_a_sweep_runs_each_job_in_its_folder(
    ran: list[tuple[Composed, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-m", "precision=fp32,bf16", "seed=range(0,2)", "name=a, b", "train.epochs=null"]) == 0
    assert [(one.choices["precision"], one.tree["seed"]) for one, _ in ran] == [
        *(("fp32", 0), ("fp32", 1)),
        *(("bf16", 0), ("bf16", 1)),
    ]
    assert [folder.name for _, folder in ran] == ["0", "1", "2", "3"]
    assert {folder.parent.parent for _, folder in ran} == {Path("multirun/a, b")}
    assert "job 1: precision=fp32 seed=1 " in capfd.readouterr().err


def test_a_sweep_of_one_job_is_a_sweep(ran: list[tuple[Composed, Path]]) -> None:
    assert cli.main(["-m", "seed=3"]) == 0
    assert cli.main(["hydra.mode=MULTIRUN", "seed=3,4"]) == 0
    assert [str(folder.parent.parent) for _, folder in ran] == ["multirun/quick"] * 3


def test_the_run_sees_the_words_that_were_typed(
    ran: list[tuple[Composed, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["runner", "seed=3"])
    seen = []
    monkeypatch.setattr(sys.modules["stand_in_for_train"], "train", lambda *_: seen.append(list(sys.argv)) or {})
    assert cli.main() == 0
    assert seen == [["runner", "seed=3"]]


def test_free_text_is_swept_by_choice(ran: list[tuple[Composed, Path]]) -> None:
    assert cli.main(["-m", 'name=choice("a, b", c)', "hydra.sweep.dir=swept"]) == 0
    assert [(one.tree["name"], folder) for one, folder in ran] == [("a, b", Path("swept/0")), ("c", Path("swept/1"))]


def test_a_key_that_only_one_job_has_not(ran: list[tuple[Composed, Path]], here: Path) -> None:
    """A constructor's default that stands in no YAML, together with a swept option."""
    (here / "my_conf/encoder/image").mkdir(parents=True)
    (here / "my_conf/mine.py").write_text("class A:\n    def __init__(self, size: int = 3): ...\n")
    (here / "my_conf/encoder/image/a.yaml").write_text("_target_: mine.A\n")
    assert cli.main(["-m", "encoder/image=patch,a", "encoder.image.size=8", "--config-dir", "my_conf"]) == 0
    assert [one.tree["encoder"]["image"]["size"] for one, _ in ran] == [8, 8]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("mistake", 2, "train.jsonl:3 is no row."),
        ("fault", 1, "the disk is full."),
        ("bug", 1, "KeyError: 'oh'"),
    ],
)
def test_what_goes_wrong_in_a_run_is_recorded(
    name: str, code: int, said: str, ran: list[tuple[Composed, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([f"name={name}"]) == code
    folder = ran[0][1]
    out, err = capfd.readouterr()
    assert said in err
    assert "Traceback" not in out + err
    assert status(folder)["exit_code"] == code
    assert status(folder)["state"] == "failed"
    assert said in status(folder)["error"]
    if name == "bug":  # the others say all there is to say
        assert str(folder / "train.log") in err
        assert "Traceback" in (folder / "train.log").read_text()


def test_a_stop_by_a_signal_has_its_code_and_ends_a_sweep(ran: list[tuple[Composed, Path]]) -> None:
    assert cli.main(["name=stopped"]) == 143
    assert not (ran[0][1] / "status.json").exists()  # the run itself has written that it is resumable
    assert cli.main(["-m", "name=stopped-1", "seed=0,1,2"]) == 143
    assert len(ran) == 3


def test_a_sweep_goes_on_after_a_failure_and_ends_with_the_worst_code(ran: list[tuple[Composed, Path]]) -> None:
    assert cli.main(["-m", "name=mistake-0", "seed=0,1"]) == 2
    assert cli.main(["-m", "name=choice(mistake-0,bug-0,fine)", "seed=0"]) == 1
    assert [status(folder)["exit_code"] for _, folder in ran if (folder / "status.json").exists()] == [2, 2, 1]
    assert len(ran) == 5


def test_a_wrong_value_of_one_job_is_its_own(
    ran: list[tuple[Composed, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-m", "train.batch_size=0,8", "hydra.sweep.dir=swept"]) == 2
    assert [composed.tree["train"]["batch_size"] for composed, _ in ran] == [8]
    assert "train.batch_size: 0 is wrong" in status(Path("swept/0"))["error"]
    assert "train.batch_size: 0 is wrong" in capfd.readouterr().err


def test_a_wrong_key_stops_a_sweep_before_it_begins(ran: list[tuple[Composed, Path]], here: Path) -> None:
    for words in ("seed=0,1 train.max_step=3", "fusion=prefix,gatd", "train.batch_size=0 seed=1,2"):
        assert cli.main(["-m", *words.split()]) == 2
    assert not ran
    assert not list(here.iterdir())


def test_hydras_pages(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    pages = {
        "train --cfg job data=jsonl": "path: ???",
        "train --cfg job --package optimizer": "lr:",
        "train --cfg job --resolve seed=7": "seed: 7",
        "train --cfg hydra": "launcher:",
        "train --info defaults": "encoder/image",
        "train --info searchpath": "file://",
        "train --help": "fusion: cross_attention, film, gated",
        "train --hydra-help": "--multirun",
        "show --cfg job": "show:",
    }
    for words, part in pages.items():
        assert cli.main(words.split()) == 0, words
        assert part in capsys.readouterr().out, words
    assert not list(here.iterdir())


def test_a_page_tells_mistakes_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--cfg", "job", "train.max_step=3"]) == 2
    assert "train.max_steps" in capsys.readouterr().err
    assert cli.main(["train", "--help", "fusion=prefx"]) == 2
    assert "did you mean prefix?" in capsys.readouterr().err


def test_a_verb_without_a_folder_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, ran: list[tuple[Composed, Path]], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(
        sys.modules["stand_in_for_train"], "show", lambda composed: seen.append(composed) or {}, raising=False
    )
    monkeypatch.setitem(cli.VERBS, "show", "stand_in_for_train:show")
    assert cli.main(["show", "show.part=parameters"]) == 0
    assert seen[0].tree["show"]["part"] == "parameters"
    assert cli.main(["-m", "show.rows=1"]) == 2  # not a setting of `train`
    assert "show.rows: no such key" in capfd.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("runner ", ["train", "show", "precision="], []),
        ("runner sh", ["show"], ["train"]),
        ("runner train precision=", ["precision=bf16", "precision=fp32"], []),
        ("runner precision=b", ["precision=bf16"], ["precision=fp32"]),
        ("runner train seed=1 optimizer.l", ["optimizer.lr="], []),
        ("runner show show.p", ["show.part="], []),
        ("runner train --config-dir my_conf experiment=m", ["experiment=mine"], []),
        ("python -m runner train fus", ["fusion="], []),
        ("runner train --config-dir ", [], ["train", "precision="]),
        ("runner train nonsense=[ optimizer.l", [], []),
    ],
)
def test_completion(
    line: str,
    offered: list[str],
    not_offered: list[str],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (here / "my_conf/experiment").mkdir(parents=True)
    (here / "my_conf/experiment/mine.yaml").write_text("# @package _global_\nname: mine\n")
    monkeypatch.setenv("COMP_LINE", line)
    cli.main(["-sc", "query=bash"])
    out, err = capfd.readouterr()
    assert set(offered) <= set(out.split())
    assert not set(not_offered) & set(out.split())
    assert err == ""


def test_completion_is_installed_for_runner(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, part in (("bash", "-F hydra_bash_completion runner"), ("fish", "complete -c runner ")):
        assert cli.main(["-sc", f"install={shell}"]) == 0
        assert part in capsys.readouterr().out


def test_from_python(ran: list[tuple[Composed, Path]], here: Path) -> None:
    assert runner.train(["seed=5", "name=it's mine"]) == {"seed": 5}
    assert ran[0][1].is_dir()
    assert ran[0][1].parent.name == "it's mine"
    for words, part in ((["train.max_step=3"], "train.max_steps"), (["-m", "seed=1,2"], "loop"), (["seed=1,2"], "-m")):
        with pytest.raises(Mistake, match=part):
            runner.train(words)
    with pytest.raises(KeyError):
        runner.train(["name=bug", "hydra.run.dir=there"])
    assert status(here / "there")["exit_code"] == 1


def test_python_m_runner_is_runner(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner", "train", "--cfg", "job", "seed=9"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed: 9" in done.stdout


FAULTS = """
import os, resource
from runner.launch import keep_freed_memory
keep_freed_memory()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds = []
for _ in range(20):
    before = faults()
    torch.ones(12_000_000)  # 48 MB
    rounds.append(faults() - before)
print(min(rounds), os.environ["MALLOC_TRIM_THRESHOLD_"])
"""


@pytest.mark.zoo
@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_is_used_again_unless_the_user_chose(own: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env={**environment, **own}, capture_output=True, text=True, check=True)
    faults, threshold = done.stdout.split()
    assert (int(faults) < 100, threshold) == (not own, own.get("MALLOC_TRIM_THRESHOLD_", str(2**30)))
