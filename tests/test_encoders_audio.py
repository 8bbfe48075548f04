"""Sounds: WAV files to samples, one channel at the right rate, and encoders whose features no padding changes."""

from __future__ import annotations

import json
import math
import pickle
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from transformers.audio_utils import mel_filter_bank

import runner
from runner.data import sound
from runner.data.collate import stack
from runner.data.decode import decode
from runner.encoders import hf_audio
from runner.encoders.hf_audio import HfAudio
from runner.encoders.sound import Mono, resample
from runner.encoders.spectrogram import Spectrogram
from runner.protocols import Mistake

tf.logging.set_verbosity_error()
RATE = 16_000
LAYERS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
RAW = {
    **LAYERS, "conv_dim": (8, 8, 8), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
CLAP_AUDIO = {
    "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "patch_embeds_hidden_size": 8,
    "hidden_size": 32, "depths": [1, 1, 1], "num_attention_heads": [1, 2, 2], "window_size": 4, "projection_dim": 8,
}  # fmt: skip


def whisper() -> Any:
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    shape = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 60, "max_source_positions": 100}
    return tf.WhisperForConditionalGeneration(tf.WhisperConfig(**sides, **ids, **shape, num_mel_bins=20))


def clap(fusion: bool) -> Any:
    text = {"vocab_size": 50, "projection_dim": 8, **LAYERS}
    return tf.ClapModel(
        tf.ClapConfig(audio_config={**CLAP_AUDIO, "enable_fusion": fusion}, text_config=text, projection_dim=8)
    )


def clap_extractor(truncation: str) -> Any:
    return tf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE, hop_length=160, max_length_s=2, fft_window_size=400, frequency_max=8000,
        truncation=truncation,
    )  # fmt: skip


MODELS: dict[str, tuple[Any, Any]] = {
    "whisper": (whisper, lambda: tf.WhisperFeatureExtractor(feature_size=20, chunk_length=2)),
    "wav2vec2_group": (
        lambda: tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**RAW, feat_extract_norm="group")),
        lambda: tf.Wav2Vec2FeatureExtractor(return_attention_mask=False),
    ),
    "wav2vec2_layer": (
        lambda: tf.Wav2Vec2Model(
            tf.Wav2Vec2Config(**RAW, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
        ),
        lambda: tf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "hubert": (
        lambda: tf.HubertModel(tf.HubertConfig(**RAW)),
        lambda: tf.Wav2Vec2FeatureExtractor(return_attention_mask=False),
    ),
    "wav2vec2_bert": (
        lambda: tf.Wav2Vec2BertModel(tf.Wav2Vec2BertConfig(**LAYERS, feature_projection_input_dim=32)),
        lambda: tf.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16),
    ),
    "ast": (
        lambda: tf.ASTForAudioClassification(
            tf.ASTConfig(**LAYERS, max_length=200, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8)
        ),
        lambda: tf.ASTFeatureExtractor(max_length=200, num_mel_bins=16),
    ),
    "clap": (lambda: clap(False), lambda: clap_extractor("rand_trunc")),
    "clap_fusion": (lambda: clap(True), lambda: clap_extractor("fusion")),
}
FIXED = {"whisper": 2.0, "ast": 2.015, "clap": 2.0, "clap_fusion": 2.0}


def saved(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    MODELS[family][0]().save_pretrained(folder / family)
    MODELS[family][1]().save_pretrained(folder / family)
    return folder / family


def encoder_of(folder: Path, **changes: Any) -> HfAudio:
    given = {"trainable": False, "dtype": "float32", "pool": "none", "max_seconds": None, "over_length": "error"}
    return HfAudio(**{"path": str(folder), **given, **changes})


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> tuple[np.ndarray, int]:
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(int(hertz)).standard_normal(len(time)) / 50
    return (0.5 * np.sin(2 * np.pi * hertz * time) + noise).astype(np.float32)[None], rate


SOUNDS = [tone(0.7), tone(1.31, 900), tone(0.25, 200)]


def inputs_of(encoder: Any, sounds: list[tuple[np.ndarray, int]]) -> dict[str, torch.Tensor]:
    return stack("audio", [encoder.preprocess(one) for one in sounds])


def own_features(folder: Path, family: str, samples: np.ndarray) -> torch.Tensor:
    model = tf.AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if family == "whisper" else getattr(model, "audio_model", model)
    inputs = tf.AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=RATE, return_tensors="pt")
    inputs.pop("attention_mask", None)
    if family == "wav2vec2_bert":
        inputs["input_features"] = inputs["input_features"][:, : (1 + (len(samples) - 400) // 160) // 2]
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    return (states.flatten(2).transpose(1, 2) if states.dim() == 4 else states)[0]


@pytest.mark.parametrize("family", MODELS)
def test_features_in_a_batch_are_those_alone_and_the_models_own(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path, family)
    encoder = encoder_of(folder)
    assert encoder.fixed is (family in FIXED) and not encoder.one_by_one
    tokens = encoder(**inputs_of(encoder, SOUNDS))
    means = encoder_of(folder, pool="mean")
    pooled = means(**inputs_of(means, SOUNDS)).features
    for k, (samples, _) in enumerate(SOUNDS):
        length = int(tokens.mask[k].sum())
        assert tokens.mask[k, :length].all()
        own = own_features(folder, family, samples[0])
        assert own.std() > 0.01 and encoder.width == own.shape[1]
        if family == "whisper":  # it hears the whole window; the tokens after the sound are not handed on
            assert length == math.ceil(samples.shape[1] / 320) and len(own) == 100
        elif family not in FIXED:
            assert length == len(own)
        torch.testing.assert_close(tokens.features[k, :length], own[:length], atol=1e-5, rtol=1e-5)
        alone = encoder(**inputs_of(encoder, [SOUNDS[k]]))
        torch.testing.assert_close(tokens.features[k, :length], alone.features[0, :length], atol=1e-5, rtol=1e-5)
        assert int(alone.mask.sum()) == length
        torch.testing.assert_close(pooled[k, 0], own[:length].mean(0), atol=1e-5, rtol=1e-5)


def test_a_family_that_sees_padding_runs_one_length_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, "wav2vec2_group")
    wanted = encoder_of(folder)
    monkeypatch.setattr(hf_audio, "mask_norms", lambda model: None)
    encoder = encoder_of(folder)
    assert encoder.one_by_one
    sounds = [*SOUNDS, SOUNDS[0]]
    tokens, expected = encoder(**inputs_of(encoder, sounds)), wanted(**inputs_of(wanted, sounds))
    assert torch.equal(tokens.mask, expected.mask)
    torch.testing.assert_close(tokens.features, expected.features, atol=1e-5, rtol=1e-5)


def test_a_trained_norm_gets_the_gradient_of_sounds_alone(tmp_path: Path) -> None:
    encoder = encoder_of(saved(tmp_path, "hubert"), trainable=True).train()
    encoder(**inputs_of(encoder, SOUNDS)).features.pow(3).sum().backward()
    together = {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}
    assert {name for name, _ in encoder.named_parameters()} - together.keys() == {"model.masked_spec_embed"}
    encoder.zero_grad()
    for one in SOUNDS:
        encoder(**inputs_of(encoder, [one])).features.pow(3).sum().backward()
    for name, one in encoder.named_parameters():
        if name in together:
            torch.testing.assert_close(one.grad, together[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", FIXED)
def test_a_fixed_window_drops_nothing_in_silence(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path, family)
    encoder = encoder_of(folder)
    assert encoder.preprocess.mono.max_seconds == pytest.approx(FIXED[family])
    with pytest.raises(Mistake, match="it lasts 2.50 s, more than the 2"):
        encoder.preprocess(tone(2.5))
    cut = encoder_of(folder, over_length="cut").preprocess(tone(2.5))
    whole = encoder.preprocess((tone(2.5)[0][:, : int(FIXED[family] * RATE)], RATE))
    assert torch.equal(cut["sound"], whole["sound"])
    with pytest.raises(Mistake, match="max_seconds=3: .* takes 2"):
        encoder_of(folder, max_seconds=3.0)


def test_class_tokens_short_sounds_and_travel(tmp_path: Path) -> None:
    folder = saved(tmp_path, "ast")
    every, first = encoder_of(folder), encoder_of(folder, pool="cls")
    inputs = inputs_of(every, SOUNDS)
    assert torch.equal(first(**inputs).features, every(**inputs).features[:, :1])
    raw = encoder_of(saved(tmp_path, "hubert"))
    least = raw.preprocess.shortest
    assert raw(**inputs_of(raw, [(np.ones((1, least), np.float32), RATE)])).mask.shape == (1, 1)
    with pytest.raises(Mistake, match=f"it has {least - 1} samples at 16,000 Hz, and the model needs {least}"):
        raw.preprocess((np.ones((1, least - 1), np.float32), RATE))
    with pytest.raises(Mistake, match="encoder.audio.pool=cls: HubertModel has no class token"):
        encoder_of(tmp_path / "hubert", pool="cls")
    again = pickle.loads(pickle.dumps(raw.preprocess))(SOUNDS[0])
    assert torch.equal(again["sound"], raw.preprocess(SOUNDS[0])["sound"])
    with torch.device("meta"):
        assert encoder_of(folder).width == every.width and encoder_of(tmp_path / "hubert").width == raw.width


def test_what_cannot_be_an_audio_encoder_is_told(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"encoder.audio.path=\S+nowhere: no feature extractor could be read"):
        encoder_of(tmp_path / "nowhere")
    folder = saved(tmp_path, "hubert")
    tf.BertModel(tf.BertConfig(**LAYERS, vocab_size=50)).save_pretrained(folder)
    with pytest.raises(Mistake, match="BertModel reads text, and encoder.audio needs a model that reads sounds"):
        encoder_of(folder)
    tf.ViTImageProcessorPil().save_pretrained(folder)
    with pytest.raises(Mistake, match=r"hubert: (ViT\w+ names no sampling rate|no feature extractor)"):
        encoder_of(folder)


def spectrogram(**changes: Any) -> Spectrogram:
    given = {
        "rate": 8000, "window": 256, "hop": 80, "mel_bands": 20, "max_seconds": 2.0, "over_length": "error",
        "patch_frames": 4, "hidden_size": 16, "layers": 2, "heads": 2, "dropout": 0.0, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    return Spectrogram(**{**given, **changes})


@pytest.mark.parametrize("training", [False, True])
def test_spectrograms_in_a_batch_are_those_alone(training: bool) -> None:
    encoder = spectrogram().train(training)
    sounds = [*SOUNDS, (np.zeros((1, 5), np.float32), 8000)]
    tokens = encoder(**inputs_of(encoder, sounds))
    for k, one in enumerate(sounds):
        inputs = inputs_of(encoder, [one])
        alone = encoder(**inputs)
        length = alone.features.shape[1]
        assert length == math.ceil(inputs["frames"].shape[1] / 4) == int(tokens.mask[k].sum()) and alone.mask.all()
        torch.testing.assert_close(tokens.features[k, :length], alone.features[0], atol=1e-5, rtol=1e-5)
        assert not tokens.features[k, length:].any()


def test_a_spectrogram_shows_a_tone_where_it_is() -> None:
    preprocess = pickle.loads(pickle.dumps(spectrogram().preprocess))
    centres = mel_filter_bank(129, 20, 0.0, 4000.0, 8000, "slaney", "slaney").argmax(0) * 8000 / 256
    for hertz in (300.0, 1000.0, 3000.0):
        frames = preprocess(tone(1.0, hertz, 44_100))["frames"]
        assert frames.shape == (1 + math.ceil((8000 - 256) / 80), 20)
        assert abs(frames.mean()) < 1e-4 and abs(frames.std(correction=0) - 1) < 1e-2
        loudest = int(frames.mean(0).argmax())
        assert loudest == int(np.abs(centres - hertz).argmin())
    with pytest.raises(Mistake, match="it lasts 2.10 s, more than the 2 s that encoder.audio takes"):
        preprocess(tone(2.1))
    with pytest.raises(Mistake, match="encoder.audio.mel_bands=200 are more than a window of 256"):
        spectrogram(mel_bands=200)


def test_resampling_keeps_what_fits_and_lets_nothing_fold_back() -> None:
    def power(samples: np.ndarray) -> float:
        return float(np.square(samples[200:-200]).mean())

    for rate, wanted in ((48_000, 16_000), (44_100, 16_000), (16_000, 8_000), (8_000, 16_000)):
        time = np.arange(rate) / rate
        kept = resample(np.sin(2 * np.pi * 1000 * time).astype(np.float32), rate, wanted)
        assert len(kept) == wanted and kept.dtype == np.float32
        exact = np.sin(2 * np.pi * 1000 * np.arange(wanted) / wanted)
        assert np.abs(kept - exact)[200:-200].max() < 1e-2
        if wanted < rate:
            gone = resample(np.sin(2 * np.pi * 0.45 * rate * time).astype(np.float32), rate, wanted)
            assert power(gone) < 1e-5
    two = np.stack([np.ones(100), np.zeros(100)]).astype(np.float32)
    assert Mono(8000, 1.0, "error")((two, 8000)).tolist() == [0.5] * 100


def wav(file: Path, kind: int, bits: int, channels: int, rate: int, data: bytes, extra: bytes = b"") -> Path:
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits) + extra
    body = b"WAVE" + b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk, filled up to an even place
    body += b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    file.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return file


NUMBERS = np.array([[0.0, 0.5, -1.0, 0.25], [0.125, -0.5, 0.75, 0.0]])


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_whole_numbers_of_every_size(tmp_path: Path, bits: int) -> None:
    whole = (NUMBERS.T.ravel() * 2 ** (bits - 1)).astype(np.int64) + (128 if bits == 8 else 0)
    data = b"".join(int(one).to_bytes(bits // 8, "little", signed=bits > 8) for one in whole)
    for kind, extra in ((1, b""), (0xFFFE, struct.pack("<HHIH", 22, bits, 0, 1) + bytes(14))):
        samples, rate = decode("audio", wav(tmp_path / "a.wav", kind, bits, 2, 22_050, data, extra))
        assert rate == 22_050 and samples.dtype == np.float32 and samples.flags.c_contiguous
        assert np.array_equal(samples, NUMBERS)
    with wave.open(str(tmp_path / "b.wav"), "wb") as file:
        file.setparams((2, bits // 8, 22_050, 0, "NONE", ""))
        file.writeframes(data)
    assert np.array_equal(decode("audio", str(tmp_path / "b.wav"))[0], NUMBERS)


def test_floating_point_and_what_a_pipe_wrote(tmp_path: Path) -> None:
    for bits in (32, 64):
        data = (2 * NUMBERS.T).astype(f"<f{bits // 8}").tobytes()
        assert np.array_equal(decode("audio", wav(tmp_path / "a.wav", 3, bits, 2, 8000, data))[0], 2 * NUMBERS)
    file = wav(tmp_path / "a.wav", 1, 16, 1, 8000, b"\1\0\2\0")
    file.write_bytes(file.read_bytes().replace(b"data\4\0\0\0", b"data\xff\xff\xff\xff"))
    assert (decode("audio", file)[0] * 2**15).tolist() == [[1, 2]]


def test_files_that_are_no_sound_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(file: Path) -> str:
        with pytest.raises(Mistake) as mistake:
            decode("audio", file)
        assert str(mistake.value).startswith(str(file)) and str(mistake.value).endswith(".")
        return str(mistake.value)

    file = tmp_path / "a.wav"
    file.touch()
    assert "is empty" in told(file)
    file.write_bytes(b"ID3 an mp3 file, for all one knows")
    assert "is not a WAV file; convert it (ffmpeg" in told(file)
    whole = wav(file, 1, 16, 1, 8000, bytes(200)).read_bytes()
    for length in range(1, len(whole)):
        file.write_bytes(whole[:length])
        told(file)
    assert "is cut off: 199 of 200 bytes" in told(file)
    assert "holds no sample" in told(wav(file, 1, 16, 1, 8000, b""))
    assert "in WAV format 7" in told(wav(file, 7, 8, 1, 8000, bytes(8)))
    assert "says 3 Hz" in told(wav(file, 1, 16, 1, 3, bytes(8)))
    assert "0 channels" in told(wav(file, 1, 16, 0, 8000, bytes(8)))
    for bad in (math.nan, math.inf, 1e300):
        assert "not finite" in told(wav(file, 3, 64, 1, 8000, np.array([0.0, bad]).tobytes()))
    monkeypatch.setattr(sound, "MAX_SAMPLES", 100)
    assert "holds 101 samples, more than 100; cut it" in told(wav(file, 1, 16, 1, 8000, bytes(202)))


def test_spoken_digits_train_through_the_command_line(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "spoken_digits"
    lines = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()[:48]]
    rows = []
    for line in lines:
        (tmp_path / Path(line["audio"]).name).write_bytes((source / line["audio"]).read_bytes())
        question = {"role": "user", "content": "<audio> Which digit?"}
        answer = {"role": "assistant", "content": line["label"]}
        rows.append(json.dumps({"id": line["id"], "audio": Path(line["audio"]).name, "messages": [question, answer]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    words = [
        "encoder/image=null", "encoder/audio=spectrogram", "encoder.audio.rate=8000", "encoder.audio.window=256",
        "encoder.audio.hop=80", "fusion=interleave", "data=jsonl", f"data.path={tmp_path}/rows.jsonl", "tracker=none",
        f"data.val_path={tmp_path}/rows.jsonl", "train.max_steps=12", "train.batch_size=16", "train.eval_every=6",
        "evaluation.predict_rows=4", "llm.hidden_size=32", "llm.intermediate_size=32", "llm.layers=1", "llm.heads=2",
        "schedule.warmup_steps=2", "optimizer.lr=0.003", "train.log_every=1", "hydra.run.dir=run",
    ]  # fmt: skip
    summary = runner.train(words)
    assert summary["parameters"]["by_component"]["encoder.audio"]["trainable"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "lr" in line]
    assert len(losses) == 12 and losses[-1] < losses[0] - 1
