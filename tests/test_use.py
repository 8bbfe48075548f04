"""Trained runs in use: evaluate gives the run's own numbers; answers are the same alone, in a batch, and in Python."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import runner
from runner.cli import main
from runner.protocols import Mistake

CORNERS = ("top left", "top right", "bottom left", "bottom right")
QUESTIONS = ("Where?", "Where is the light, please?", "In which corner of the picture is it bright?")
TRAIN = [
    "tracker=none", "data=jsonl", "train.batch_size=16", "train.eval_every=20", "evaluation.batch_size=5",
    "evaluation.predict_rows=null", "optimizer.lr=8.0e-3", "schedule.warmup_steps=5", "checkpoint.keep_last=5",
    "encoder.image.hidden_size=16", "encoder.image.layers=1", "encoder.image.heads=2",
]  # fmt: skip
INSTRUCT = [
    "model=instruct", "train.max_steps=80", "llm.hidden_size=32", "llm.intermediate_size=64", "llm.layers=1",
    "model.max_new_tokens=16", "checkpoint.monitor=val/exact_match", "checkpoint.mode=max",
]  # fmt: skip
CLASSIFY = ["model=classify", "encoder/image=patch", "train.max_steps=60", "model.class_weights=balanced"]
Use = Callable[..., tuple[int, str, str]]


def rows_of(folder: Path, place: str) -> Path:
    """Pictures with one bright corner; train and val."""
    chance = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    for split, count in (("train", 48), ("val", 18)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for k in range(count):
                corner = k % 4
                pixels = chance.integers(0, 60, (8, 8)).astype(np.uint8)
                pixels[4 * (corner // 2) :, 4 * (corner % 2) :][:4, :4] += 150
                Image.fromarray(pixels).save(folder / f"pictures/{split}-{k}.png")
                question = {"role": "user", "content": place + QUESTIONS[k % 3]}
                answer = {"role": "assistant", "content": CORNERS[corner]}
                row = {
                    "id": f"{split}-{k}",
                    "image": f"pictures/{split}-{k}.png",
                    "messages": [question, answer],
                    "label": CORNERS[corner],
                }
                stream.write(json.dumps(row) + "\n")
    return folder


def trained(folder: Path, place: str, *overrides: str) -> Path:
    """A run in `run`, its rows in `data`, whose training split is gone."""
    data = rows_of(folder / "data", place)
    runner.train([*TRAIN, *overrides, f"data.path={data}", f"hydra.run.dir={folder / 'run'}"])
    return folder / "run"


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("instruct"), "", *INSTRUCT)


@pytest.fixture(scope="module")
def interleave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its training data and pictures are gone."""
    run = trained(tmp_path_factory.mktemp("interleave"), "See <image> here. ", *INSTRUCT, "fusion=interleave")
    shutil.rmtree(run.parent / "data")
    rows_of(run.parent / "other", "See <image> here. ")
    return run


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("classify"), "", *CLASSIFY)


@pytest.fixture
def use(capfd: pytest.CaptureFixture[str]) -> Use:
    def call(*words: str) -> tuple[int, str, str]:
        code = main([*words, "cluster.device=cpu"])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def evaluation_of(run: Path, name: str = "val") -> dict[str, Any]:
    return json.loads((run / f"evaluations/{name}.json").read_text())


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_step(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "step"}


@pytest.mark.zoo
def test_evaluate_in_a_new_process_gives_the_runs_own_numbers(instruct: Path) -> None:
    code = "import sys; from runner.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["evaluate", f"run={instruct}", "at=last"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    last = summary_of(instruct)["last"]
    found = evaluation_of(instruct)
    assert found["metrics"] == without_step(last)
    assert (found["at"], found["step"], found["rows"], found["predicted"]) == ("last", last["step"], 18, 18)
    printed = "  ".join(f"{name} {value:.4f}" for name, value in without_step(last).items())
    assert f"step 80  {printed}" in done.stdout
    assert "Held-out questions" in done.stdout and "val-0" in done.stdout
    predictions = lines_of(instruct / "evaluations/val.jsonl")
    assert [one["id"] for one in predictions] == [f"val-{k}" for k in range(18)]
    right = sum(one["answer"] == one["truth"] for one in predictions) / 18
    assert right == last["val/exact_match"] and 0.3 < right  # it learnt something, so answers differ


def test_each_checkpoint_has_its_own_numbers(instruct: Path, use: Use) -> None:
    logged = {
        line["step"]: {f"val/{name}": value for name, value in line.items() if name not in ("step", "split")}
        for line in lines_of(instruct / "metrics.jsonl")
        if line["split"] == "val"
    }
    assert sorted(logged) == [20, 40, 60, 80]
    for at, step in (("20", 20), ("best", summary_of(instruct)["best"]["step"])):
        assert use("evaluate", f"run={instruct}", f"at={at}")[0] == 0
        assert evaluation_of(instruct)["metrics"] == logged[step]
        assert evaluation_of(instruct)["step"] == step
    assert logged[20] != logged[80]


def test_a_classifier_is_evaluated_with_its_confusion_and_balanced_loss(classify: Path, use: Use) -> None:
    assert use("evaluate", f"run={classify}", "at=last")[0] == 0
    summary, found = summary_of(classify), evaluation_of(classify)
    assert found["metrics"] == without_step(summary["last"])
    assert (found["classes"], found["confusion"]) == (summary["classes"], summary["confusion"])
    line = lines_of(classify / "evaluations/val.jsonl")[0]
    assert set(line["probabilities"]) == set(CORNERS)
    assert next(iter(line["probabilities"])) == line["answer"]


def test_another_file_and_the_training_split(instruct: Path, interleave: Path, use: Use) -> None:
    assert use("evaluate", f"run={instruct}", "evaluate.split=train", "evaluation.predict_rows=2")[0] == 0
    assert evaluation_of(instruct, "train")["metrics"].keys() == {"train/loss", "train/exact_match"}
    assert evaluation_of(instruct, "train")["predicted"] == 2
    # The run's own rows are gone; these are the same under another name.
    file = interleave.parent / "other/late, rows.jsonl"
    shutil.copy(file.with_name("val.jsonl"), file)
    assert use("evaluate", f"run={interleave}", "at=last", f"data.path={file}")[0] == 0
    last = summary_of(interleave)["last"]
    found = evaluation_of(interleave, "late, rows")
    assert found["metrics"] == {f"late, rows/{name}": last[f"val/{name}"] for name in ("loss", "exact_match")}


def test_generate_answers_one_question_without_the_training_data(interleave: Path, use: Use) -> None:
    picture = interleave.parent / "other/pictures/val-5.png"
    words = ["generate", f"run={interleave}", "at=last", f"image={picture}"]
    code, out, err = use(*words, "prompt=See <image> here. Where?")
    assert (code, err) == (0, "")
    predictor = runner.Predictor.from_run(interleave, at="last", overrides=["cluster.device=cpu"])
    assert predictor(prompt="See <image> here. Where?", image=picture) == out.strip()
    assert predictor(prompt="See <image> here. Where?", image=Image.open(picture)) == out.strip()
    assert use(*words, "prompt=See <image> here. Where?", "use_cache=false")[1] == out
    assert use(*words, "prompt=See <image> here. Where?", "max_new_tokens=1")[1].strip() == out[0]
    drawn = [use(*words, "prompt=See <image> here. Where?", "temperature=2", f"seed={seed}")[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    both = ",".join(str(picture.with_name(f"val-{k}.png")) for k in (5, 6))
    assert use("generate", f"run={interleave}", "prompt=<image> Where? <image>", f"image=[{both}]")[0] == 0


@pytest.mark.parametrize("fusion", ["instruct", "interleave"])
@pytest.mark.parametrize("temper", [{}, {"use_cache": False}])
def test_a_batch_answers_as_each_alone(fusion: str, temper: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Questions of differing lengths, and rows without a picture among them; with the cache and without."""
    run: Path = request.getfixturevalue(fusion)
    data = run.parent / ("data" if fusion == "instruct" else "other")
    predictor = runner.Predictor.from_run(run, at="last", overrides=["batch_size=7", "cluster.device=cpu"])
    assert predictor.decoding is not None
    asked = [
        {
            "prompt": row["messages"][0]["content"] if k % 6 else row["messages"][0]["content"].replace("<image>", ""),
            "image": data / row["image"] if k % 6 else None,
        }
        for k, row in enumerate(lines_of(data / "val.jsonl"))
    ]
    together = predictor(asked)
    predictor.decoding = predictor.objective.decoding = replace(predictor.decoding, **temper)
    assert [predictor(**one) for one in asked] == together == predictor(asked)
    assert len(set(together)) > 2


def test_a_file_of_rows_is_answered_line_by_line(instruct: Path, use: Use, tmp_path: Path) -> None:
    data = instruct.parent / "data"
    rows = [row | {"messages": row["messages"][:1], "_note": "kept"} for row in lines_of(data / "val.jsonl")]
    asked, answers = data / "asked.jsonl", tmp_path / "answers, all.jsonl"
    asked.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    words = ["generate", f"run={instruct}", "at=last", f"input={asked}", f"output={answers}"]
    code, _, err = use(*words, "batch_size=4")
    assert (code, err) == (0, "")
    assert [{name: value for name, value in one.items() if name != "answer"} for one in lines_of(answers)] == rows
    assert list(tmp_path.iterdir()) == [answers]
    main(["evaluate", f"run={instruct}", "at=last"])
    evaluated = lines_of(instruct / "evaluations/val.jsonl")
    assert [one["answer"] for one in lines_of(answers)] == [one["answer"] for one in evaluated]
    assert [one["answer"] for one in evaluated] == runner.Predictor.from_run(instruct, at="last")(
        [{"messages": row["messages"], "image": data / row["image"]} for row in rows]
    )
    code, _, err = use(*words)
    assert code == 2 and "overwrite=true" in err
    before = answers.read_text()
    assert use(*words, "overwrite=true", "batch_size=1")[0] == 0
    assert answers.read_text() == before


def changed(run: Path, folder: Path, **data: Any) -> Path:
    """A copy of a run, with other settings of its data."""
    shutil.copytree(run, folder)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_question_over_length_is_asked_as_evaluate_asks_it(instruct: Path, use: Use, tmp_path: Path) -> None:
    run = changed(instruct, tmp_path / "run", over_length="truncate_prompt", max_prompt_length=12)
    assert use("evaluate", f"run={run}", "at=last")[0] == 0
    data = instruct.parent / "data"
    rows = [{"messages": row["messages"][:1], "image": data / row["image"]} for row in lines_of(data / "val.jsonl")]
    cut = runner.Predictor.from_run(run, at="last", overrides=["cluster.device=cpu"])(rows)
    assert cut == [one["answer"] for one in lines_of(run / "evaluations/val.jsonl")]
    strict = changed(instruct, tmp_path / "strict", over_length="error", max_prompt_length=12)
    code, _, err = use("generate", f"run={strict}", f"input={data / 'val.jsonl'}", f"output={tmp_path / 'a.jsonl'}")
    assert code == 2 and "12 of 18 questions too long: val.jsonl:2 (id val-1, 30 tokens), " in err
    assert "data.max_prompt_length=12" in err and not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("source", ["runner.data.jsonl.Jsonl", "runner.data.table.Parquet"])
def test_a_compressed_file_is_read_by_the_columns_of_any_source(
    source: str, instruct: Path, use: Use, tmp_path: Path
) -> None:
    run = changed(instruct, tmp_path / "run", _target_=source, fields={"user": "q", "assistant": "a"})
    asked, answers = tmp_path / "asked.jsonl.gz", tmp_path / "answers.jsonl"
    with gzip.open(asked, "wb") as stream:
        stream.write(b'\xef\xbb\xbf{"id": "one",\r "q": "Where?"}\r\n\n{"q": "Where, \xe2\x80\xa8 please?"}')
    words = ["generate", f"run={run}", "at=last", f"input={asked}", f"output={answers}"]
    code, _, err = use(*words)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in answers.read_text().split("\n") if line]
    predictor = runner.Predictor.from_run(run, at="last", overrides=["cluster.device=cpu"])
    expected = [{"id": "one", "q": "Where?"}, {"q": "Where, \u2028 please?"}]
    assert found == [one | {"answer": predictor(prompt=one["q"])} for one in expected]
    with gzip.open(asked, "wb") as stream:
        stream.write(b'{"q": "Where?"}\n{"q": "Where?", "q": "There?"}\n{"q": ')
    code, _, err = use(*words, "overwrite=true")
    assert code == 2 and "input: 2 rows cannot be used." in err and "has the key `q` twice" in err


def test_a_classifier_needs_no_training_row_and_gives_probabilities(classify: Path, use: Use, tmp_path: Path) -> None:
    picture = tmp_path / "a picture.png"
    shutil.copy(classify.parent / "data/pictures/val-1.png", picture)
    hidden = classify.parent / "hidden"
    (classify.parent / "data").rename(hidden)
    try:
        code, out, err = use("generate", f"run={classify}", "image=a picture.png")
        assert (code, err) == (0, "")
        label = runner.Predictor.from_run(classify)(image="a picture.png")
        answer, *listed = out.splitlines()
        assert label == answer == "top right"
        probabilities = label.probabilities  # type: ignore[attr-defined]
        assert abs(sum(probabilities.values()) - 1) < 1e-5
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert listed == [f"{share:7.4f}  {name}" for name, share in probabilities.items()]
        code, _, err = use("generate", f"run={classify}", "image=a picture.png", "prompt=Where?")
        assert code == 2 and "prompt: this run reads no text. It has encoders for: image." in err
        code, _, err = use("generate", f"run={classify}", "image=a picture.png", "temperature=1")
        assert code == 2 and "temperature: this run does not answer in text" in err
        assert use("evaluate", f"run={classify}")[0] == 2  # its rows are gone
    finally:
        hidden.rename(classify.parent / "data")


def test_a_resume_holds_the_classes_against_those_of_the_checkpoint(classify: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(classify, run)
    data = rows_of(tmp_path / "data", "")
    lines = (data / "train.jsonl").read_text().replace('"label": "top left"', '"label": "top"')
    (data / "train.jsonl").write_text(lines)
    (data / "val.jsonl").write_text((data / "val.jsonl").read_text().replace('"label": "top left"', '"label": "top"'))
    words = [*TRAIN, *CLASSIFY, f"data.path={data}", f"resume={run}", "force_resume=false"]
    config = (run / "config.yaml").read_text().replace(str(classify.parent / "data"), str(data))
    (run / "config.yaml").write_text(config)
    with pytest.raises(Mistake, match="what the model keeps of the rows"):
        runner.train(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate"], "run needs a value"),
        (["evaluate", "run=nowhere"], "run: there is no folder nowhere"),
        (["generate", "run=.", "prompt=x"], "is no run's folder: it has no config.yaml"),
        (["evaluate", "run=RUN/checkpoints/step-00000040"], "Give its run's folder, and at=40"),
        (["evaluate", "run=RUN", "at=7"], "keeps no checkpoint of step 7. Set at=STEP; it has 20, 40, 60, 80"),
        (["evaluate", "run=RUN", "at=newest"], 'at: "newest" is wrong; it must be one of best, last'),
        (["evaluate", "run=RUN", "evaluate.split=tset"], "evaluate.split=tset: the data has train, val."),
        (["evaluate", "run=RUN", "data.path=nothing.jsonl"], "data.path: there is no nothing.jsonl"),
        (["evaluate", "run=RUN", "data.pth=a"], "data.pth: the run's config has no such key; did you mean data.path?"),
        (["evaluate", "run=RUN", "optimizer.lr=1"], "optimizer.lr: no such key"),
        (["evaluate", "run=RUN", "model=chat"], "model=chat: that is as the run was trained"),
        (["evaluate", "run=RUN", "encoder.image.size=16"], "encoder.image.size: that is as the run was trained"),
        (["generate", "run=RUN"], "There is nothing to answer"),
        (["generate", "run=RUN", "image=PICTURE"], "prompt is missing"),
        (["generate", "run=RUN", "promt=x"], "promt: no such key; did you mean prompt?"),
        (["generate", "run=RUN", "prompt=x", "image=gone.png"], "image: there is no file gone.png"),
        (["generate", "run=RUN", "prompt=x", "audio=PICTURE"], "audio: this run has no encoder for it"),
        (["generate", "run=RUN", "prompt=<image> and <image>", "image=PICTURE"], "2 <image> and the row has 1"),
        (["generate", "run=RUN", "prompt=x", "max_new_tokens=2000"], "with max_new_tokens=2000 that is more than"),
        (["generate", "run=RUN", "input=gone.jsonl", "output=a.jsonl"], "input: there is no file gone.jsonl"),
        (["generate", "run=RUN", "input=ROWS"], "output is missing"),
        (["generate", "run=RUN", "input=ROWS", "output=no/a.jsonl"], "make its folder"),
        (["generate", "run=RUN", "input=ROWS", "output=ROWS", "overwrite=true"], "is the input itself"),
        (["generate", "run=RUN", "prompt=x", "output=a.jsonl"], "output: it goes with input"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_mistakes_are_told(words: list[str], said: str, instruct: Path, use: Use, tmp_path: Path) -> None:
    data = instruct.parent / "data"
    named = {"RUN": str(instruct), "PICTURE": str(data / "pictures/val-0.png"), "ROWS": str(data / "val.jsonl")}
    for name, path in named.items():
        words = [word.replace(name, path) for word in words]
    code, _, err = use(*words)
    assert said in err
    assert code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_or_with_a_broken_one(instruct: Path, use: Use, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(instruct, run)
    (run / "checkpoints/step-00000080/optimizer.safetensors").unlink()  # not needed
    assert use("generate", f"run={run}", "at=last", "prompt=x")[0] == 0
    weights = run / "checkpoints/step-00000080/trainable.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, err = use("generate", f"run={run}", "at=last", "prompt=x")
    assert code == 2 and "is not a whole checkpoint" in err
    shutil.rmtree(run / "checkpoints")
    code, _, err = use("generate", f"run={run}", "prompt=x")
    assert code == 2 and "has no checkpoint" in err


def test_parts_of_ones_own_need_their_folder_again(classify: Path, use: Use, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(classify, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("runner.encoders.image.Patch", "mine.Patch"))
    code, _, err = use("generate", f"run={run}", "image=x.png")
    assert code == 2 and "mine.Patch" in err and "give the same folder again" in err


def test_base_weights_that_are_gone_or_others(instruct: Path, use: Use, tmp_path: Path) -> None:
    """A small saved language model is the base; its folder moves, and then holds other weights."""
    from runner.models.llm import Tiny

    source = Tiny(32, 64, 1, 2, 1, 256, 0.1, None, False)
    source.load().save_pretrained(tmp_path / "base")
    source.tokenizer().save_pretrained(tmp_path / "base")
    data = instruct.parent / "data"
    run = tmp_path / "run"
    words = [one for one in INSTRUCT if not one.startswith("llm.")]
    base = ["llm=pretrained", f"llm.path={tmp_path / 'base'}", "lora=default", "lora.r=2", "train.max_steps=2"]
    runner.train([*TRAIN, *words, *base, f"data.path={data}", f"hydra.run.dir={run}", "evaluation.predict_rows=3"])
    (tmp_path / "base").rename(tmp_path / "moved")
    ask = ["generate", f"run={run}", "prompt=Where?"]
    code, _, err = use(*ask)
    assert code == 2 and "llm.path=" in err
    code, out, err = use(*ask, f"llm.path={tmp_path / 'moved'}")
    assert (code, err) == (0, "")
    source.load().save_pretrained(tmp_path / "moved")
    code, _, err = use(*ask, f"llm.path={tmp_path / 'moved'}")
    assert code == 2 and "the weight files of llm are not those that the run was trained on" in err
