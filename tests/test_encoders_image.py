"""Vision models of transformers in the image seat: their features are the library's own, frozen is frozen, and what
cannot be read is told by a sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from torch import nn

import runner
from runner.data.collate import stack
from runner.data.decode import decode
from runner.encoders.hf_vision import HfVision
from runner.inventory import files_of
from runner.models.freeze import keep_frozen
from runner.protocols import Mistake

tf.logging.set_verbosity_error()
VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDE = {"image_size": 16, "patch_size": 8}
TEXT = {"vocab_size": 50, "projection_dim": 8, **VIT}
SIZE = {"height": 16, "width": 16}
CROPPED = {"size": {"shortest_edge": 20}, "crop_size": SIZE}


def clip() -> Any:
    shape = tf.CLIPConfig(vision_config={**VIT, **SIDE, "projection_dim": 8}, text_config=TEXT, projection_dim=8)
    return tf.CLIPModel(shape)


MODELS: dict[str, tuple[Any, Any]] = {
    "vit": (
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT, **SIDE)),
        lambda: tf.ViTImageProcessorPil(size=SIZE),
    ),
    "clip": (clip, lambda: tf.CLIPImageProcessorPil(**CROPPED)),
    "clip_vision": (
        lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VIT, **SIDE)),
        lambda: tf.CLIPImageProcessorPil(**CROPPED),
    ),
    "siglip": (
        lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**VIT, **SIDE)),
        lambda: tf.SiglipImageProcessorPil(size=SIZE),
    ),
    "dinov2": (lambda: tf.Dinov2Model(tf.Dinov2Config(**VIT, **SIDE)), lambda: tf.BitImageProcessorPil(**CROPPED)),
    "mobilenet_v2": (
        lambda: tf.MobileNetV2ForImageClassification(tf.MobileNetV2Config(image_size=16, depth_multiplier=0.25)),
        lambda: tf.MobileNetV2ImageProcessorPil(**CROPPED),
    ),
    "resnet": (
        lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        lambda: tf.ConvNextImageProcessorPil(size={"shortest_edge": 16}),
    ),
    "convnext": (
        lambda: tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        lambda: tf.ConvNextImageProcessorPil(size={"shortest_edge": 16}),
    ),
    "swin": (
        lambda: tf.SwinModel(
            tf.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
        ),
        lambda: tf.ViTImageProcessorPil(size=SIZE),
    ),
}
TOWERS = {"clip": "vision_model"}
GRIDS: dict[str, tuple[int, int] | None] = {
    "vit": (2, 2), "clip": (2, 2), "clip_vision": (2, 2), "siglip": (2, 2), "dinov2": (2, 2),
    "mobilenet_v2": (1, 1), "resnet": (2, 2), "convnext": (2, 2), "swin": None,
}  # fmt: skip


def processor_of(family: str) -> Any:
    return MODELS[family][1]()


def saved(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    model = MODELS[family][0]()
    with torch.no_grad():  # so that normalisation statistics are not the identity
        model.train()(pixel_values=torch.randn(8, 3, 16, 16)) if family in ("resnet", "mobilenet_v2") else None
    model.save_pretrained(folder / family)
    processor_of(family).save_pretrained(folder / family)
    return folder / family


def encoder_of(folder: Path, **changes: Any) -> HfVision:
    return HfVision(**{"path": str(folder), "trainable": False, "dtype": "float32", "pool": "none", **changes})


def picture(seed: int, size: tuple[int, int] = (40, 28)) -> Image.Image:
    numbers = np.random.default_rng(seed).integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(numbers).resize(size)


def inputs_of(encoder: HfVision, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    return stack("image", [encoder.preprocess(one) for one in pictures])


@pytest.mark.parametrize("family", MODELS)
def test_features_are_the_models_own(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path, family)
    encoder = encoder_of(folder)
    pictures = [picture(1), picture(2, (20, 60)), picture(3).convert("L")]
    tokens = encoder(**inputs_of(encoder, pictures))
    assert (tokens.features[0] - tokens.features[1]).abs().max() > 1e-3
    assert tokens.features.shape[2] == encoder.width and tokens.mask.all() and tokens.features.dtype == torch.float32
    model = tf.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, TOWERS.get(family, ""), model)
    for k, one in enumerate(pictures):
        with torch.no_grad():
            pixels = processor_of(family)(one.convert("RGB"), return_tensors="pt")
            own = model(**pixels).last_hidden_state
        own = own.flatten(2).transpose(1, 2) if own.dim() == 4 else own
        torch.testing.assert_close(tokens.features[k], own[0], atol=1e-5, rtol=1e-5)
    assert tokens.grid == GRIDS[family]
    if tokens.grid is not None:
        assert_tokens_lie_on(encoder, inputs_of(encoder, pictures[:1])["pixel_values"], tokens.grid)
    assert encoder.files.keys() == {"model.safetensors"} and len(encoder.files["model.safetensors"]) == 64
    holder = nn.ModuleDict({"encoder": nn.ModuleDict({"image": encoder})})
    assert files_of(holder) == {"encoder.image": encoder.files}  # type: ignore[arg-type]


def assert_tokens_lie_on(encoder: HfVision, pixels: torch.Tensor, grid: tuple[int, int]) -> None:
    """A convolution's map is the grid itself; else a changed patch changes its own token's embedding alone."""
    if encoder.gives_map:
        features = encoder(pixel_values=pixels).features
        own = encoder.model(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(features.unflatten(1, grid), own.permute(0, 2, 3, 1))
    else:
        assert_patches_lie_on(encoder, pixels, grid)


def assert_patches_lie_on(encoder: HfVision, pixels: torch.Tensor, grid: tuple[int, int]) -> None:
    def embedded(pixel_values: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = encoder.model(pixel_values=pixel_values, output_hidden_states=True).hidden_states[0]
        return states

    before = embedded(pixels)
    for row in range(grid[0]):
        for column in range(grid[1]):
            other = pixels.clone()
            other[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
            changed = ((embedded(other) - before).abs().amax((0, 2)) > 1e-5).nonzero().flatten().tolist()
            assert changed == [before.shape[1] - grid[0] * grid[1] + row * grid[1] + column]


def test_a_grid_is_given_where_it_is_sure(tmp_path: Path) -> None:
    """Not square, behind registers; not of tokens that stand for the whole, nor before tokens of no patch."""
    wide = tf.Dinov2WithRegistersModel(
        tf.Dinov2WithRegistersConfig(**VIT, image_size=24, patch_size=8, num_register_tokens=3)
    )
    wide.save_pretrained(tmp_path / "wide")
    tf.BitImageProcessorPil(do_resize=False, crop_size={"height": 16, "width": 24}).save_pretrained(tmp_path / "wide")
    encoder = encoder_of(tmp_path / "wide")
    inputs = inputs_of(encoder, [picture(1)])
    tokens = encoder(**inputs)
    assert tokens.grid == (2, 3) and tokens.features.shape[1] == 1 + 3 + 6
    assert_patches_lie_on(encoder, inputs["pixel_values"], (2, 3))
    for pool in ("mean", "cls"):
        assert encoder_of(tmp_path / "wide", pool=pool)(**inputs).grid is None
    yolos = tf.YolosModel(tf.YolosConfig(**VIT, image_size=[24, 24], patch_size=8, num_detection_tokens=2))
    yolos.save_pretrained(tmp_path / "yolos")
    tf.ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "yolos")
    behind = encoder_of(tmp_path / "yolos")
    tokens = behind(**inputs_of(behind, [picture(1)]))
    assert tokens.features.shape[1] == 1 + 9 + 2 and tokens.grid is None


def test_preprocessing_is_small_and_travels(tmp_path: Path) -> None:
    encoder = encoder_of(saved(tmp_path, "vit"))
    sent = pickle.dumps(encoder.preprocess)
    assert len(sent) < 10_000
    one, two = encoder.preprocess(picture(1)), pickle.loads(sent)(picture(1))
    assert torch.equal(one["pixel_values"], two["pixel_values"])


def test_pooling(tmp_path: Path) -> None:
    folder = saved(tmp_path, "dinov2")
    every = encoder_of(folder)
    inputs = inputs_of(every, [picture(1), picture(2)])
    features = every(**inputs).features
    for pool, wanted in (("mean", features.mean(1)), ("cls", features[:, 0])):
        tokens = encoder_of(folder, pool=pool)(**inputs)
        assert tokens.mask.tolist() == [[True], [True]]
        torch.testing.assert_close(tokens.features[:, 0], wanted)
    for family in ("siglip", "resnet"):
        with pytest.raises(Mistake, match="has no class token. Set pool=mean"):
            encoder_of(saved(tmp_path, family), pool="cls")


@pytest.mark.parametrize("trainable", [False, True])
def test_a_step_changes_what_trains_and_no_statistics(tmp_path: Path, trainable: bool) -> None:
    encoder = encoder_of(saved(tmp_path, "mobilenet_v2"), trainable=trainable, pool="mean")
    head = nn.Linear(encoder.width, 2)
    whole = nn.ModuleDict({"encoder": encoder, "head": head})
    keep_frozen(whole)
    whole.train()
    before = {name: one.detach().clone() for name, one in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in whole.parameters() if one.requires_grad], lr=0.1)
    features = encoder(**inputs_of(encoder, [picture(1), picture(2)])).features
    assert features.requires_grad is trainable
    head(features).square().sum().backward()
    optimizer.step()
    after = encoder.state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert bool(changed) is trainable
    assert not any(module.training for module in encoder.model.modules())


def test_what_features_do_not_need_does_not_train(tmp_path: Path) -> None:
    encoder = encoder_of(saved(tmp_path, "clip"), trainable=True)
    still = {name for name, one in encoder.named_parameters() if not one.requires_grad}
    assert still == {"model.post_layernorm.weight", "model.post_layernorm.bias"}
    assert not any("text" in name for name, _ in encoder.named_parameters())


def test_frozen_weights_may_be_narrow(tmp_path: Path) -> None:
    folder = saved(tmp_path, "vit")
    encoder = encoder_of(folder, dtype="bfloat16")
    inputs = inputs_of(encoder, [picture(1)])
    assert {one.dtype for one in encoder.parameters()} == {torch.bfloat16}
    features = encoder(**inputs).features
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, encoder_of(folder)(**inputs).features, atol=0.1, rtol=0.1)
    with pytest.raises(Mistake, match="encoder.image.dtype=bfloat16 is for frozen weights"):
        encoder_of(folder, dtype="bfloat16", trainable=True)


def test_shapes_alone_without_weights(tmp_path: Path) -> None:
    for family in ("vit", "mobilenet_v2", "clip"):
        folder = saved(tmp_path, family)
        whole = encoder_of(folder, trainable=True)
        (folder / "model.safetensors").unlink()
        with torch.device("meta"):
            bare = encoder_of(folder, trainable=True)
        assert bare.width == whole.width and {one.device.type for one in bare.parameters()} == {"meta"}
        assert {name: one.requires_grad for name, one in bare.named_parameters()} == {
            name: one.requires_grad for name, one in whole.named_parameters()
        }


def lose(folder: Path, lost: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if not name.startswith(lost)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_cannot_be_an_encoder_is_told(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"encoder.image.path=\S+nowhere: no image processor could be read"):
        encoder_of(tmp_path / "nowhere")
    no_preprocessing = saved(tmp_path / "a", "vit")
    (no_preprocessing / "preprocessor_config.json").unlink()
    with pytest.raises(Mistake, match=r"a/vit: no image processor could be read"):
        encoder_of(no_preprocessing)
    cut = saved(tmp_path / "b", "vit")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(Mistake, match=r"b/vit: no whole model could be read"):
        encoder_of(cut)
    gone = saved(tmp_path / "c", "vit")
    (gone / "model.safetensors").unlink()
    with pytest.raises(Mistake, match=r"c/vit: no whole model could be read"):
        encoder_of(gone)
    partly = saved(tmp_path / "d", "resnet")
    lose(partly, "encoder.stages.1")
    with pytest.raises(Mistake, match=r"d/resnet: the folder lacks \d+ of the model's tensors \(encoder.stages.1"):
        encoder_of(partly)
    config = saved(tmp_path / "e", "vit")
    (config / "config.json").write_text("{")
    with pytest.raises(Mistake, match=r"e/vit: no image processor could be read"):
        encoder_of(config)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    tf.BertModel(tf.BertConfig(**{**VIT, "vocab_size": 50})).save_pretrained(folder)
    processor_of("vit").save_pretrained(folder)
    with pytest.raises(Mistake, match="BertModel reads text, and encoder.image needs a model that reads pictures"):
        encoder_of(folder)
    folder = saved(tmp_path, "vit")
    tf.ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    with pytest.raises(Mistake, match="ViTModel cannot encode what the folder's own preprocessing gives"):
        encoder_of(folder)
    tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False).save_pretrained(folder)
    with pytest.raises(Mistake, match="its preprocessing keeps the shape of a picture"):
        encoder_of(folder)


def test_pretrained_features_of_clothes_beat_pixels(shared: Path) -> None:
    import json

    from sklearn.linear_model import LogisticRegression

    lines = (shared / "data" / "clothing" / "train.jsonl").read_text().splitlines()
    wanted = ("pants", "shoes", "t-shirt", "dress")
    rows = [row for row in map(json.loads, lines) if row["label"] in wanted]
    rows = [row for label in wanted for row in [one for one in rows if one["label"] == label][:16]]
    pictures = [decode("image", shared / "data" / "clothing" / row["image"]) for row in rows]
    encoder = encoder_of(shared / "models" / "mobilenet_v1_0.75_224", pool="mean")
    assert encoder.width == 768
    features = np.concatenate([encoder(**inputs_of(encoder, [one])).features[:, 0].numpy() for one in pictures])
    pixels = np.array(
        [np.asarray(one.convert("RGB").resize((16, 16)), dtype=np.float32).ravel() / 255 for one in pictures]
    )
    labels = np.array([row["label"] for row in rows])
    held_out = np.arange(len(rows)) % 2 == 1

    def right(x: np.ndarray) -> float:
        fitted = LogisticRegression(max_iter=300).fit(x[~held_out], labels[~held_out])
        return float(fitted.score(x[held_out], labels[held_out]))

    assert right(features) >= 0.8 > right(pixels) + 0.1


@pytest.mark.zoo
def test_two_loaded_encoders_train_through_the_command_line(tmp_path: Path) -> None:
    from text_folders import bert_folder

    summary = runner.train(
        [
            "encoder/image=hf_vision", f"encoder.image.path={saved(tmp_path, 'mobilenet_v2')}", "encoder/text=hf_text",
            f"encoder.text.path={bert_folder(tmp_path / 'bert')}", "encoder.text.pool=mean", "tracker=none",
            "train.max_steps=3", "train.batch_size=4", "train.eval_every=null", "evaluation.predict_rows=4",
            "llm.hidden_size=16", "llm.intermediate_size=16", "llm.layers=1", "llm.heads=2", "hydra.run.dir=run",
        ]
    )  # fmt: skip
    parts = summary["parameters"]["by_component"]
    assert parts["encoder.image"]["trainable"] == parts["encoder.text"]["trainable"] == 0
    assert parts["encoder.image"]["frozen"] > 0 and parts["projector.text"]["trainable"] > 0
    from runner.checkpoint import Local

    newest, _ = Local().newest(tmp_path / "run")
    assert newest is not None
    content = Local().load(newest)
    assert not any(name.startswith("encoder.") for name in content.trainable)
    assert content.state["files"].keys() == {"encoder.image", "encoder.text"}
