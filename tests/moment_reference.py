"""Small MOMENTs with weights and inputs out of formulas, and what the package momentfm 0.1.4 makes of them.

`python -m tests.moment_reference FOLDER`, with momentfm's unpacked wheel in FOLDER, writes tests/golden/moment.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "moment.json"
KINDS = {"gated": "gated-gelu", "plain": "relu"}
STEPS, CHANNELS = 64, 2


def config_of(kind: str) -> dict[str, Any]:
    """A config.json as AutonLab/MOMENT-1-small has it, but smaller."""
    return {
        "task_name": "embedding",
        "model_name": "MOMENT",
        "transformer_type": "encoder_only",
        "d_model": None,
        "seq_len": STEPS,
        "patch_len": 8,
        "patch_stride_len": 8,
        "device": "cpu",
        "transformer_backbone": "google/flan-t5-small",
        "model_kwargs": {},
        "t5_config": {
            "architectures": ["T5ForConditionalGeneration"],
            "d_ff": 24,
            "d_kv": 4,
            "d_model": 8,
            "dropout_rate": 0.1,
            "feed_forward_proj": KINDS[kind],
            "is_encoder_decoder": True,
            "layer_norm_epsilon": 1e-06,
            "model_type": "t5",
            "num_decoder_layers": 2,
            "num_heads": 2,
            "num_layers": 2,
            "relative_attention_max_distance": 128,
            "relative_attention_num_buckets": 32,
            "tie_word_embeddings": False,
            "vocab_size": 16,
        },
    }


def weights_by_formula(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Every tensor but the table of positions out of its name's rank and its elements' places."""
    weights = {}
    for rank, name in enumerate(sorted(shapes)):
        if name.endswith(".pe"):
            continue
        count = torch.arange(shapes[name].numel(), dtype=torch.float64)
        wave = (count * 1.7 + rank).sin() * 0.4 + (1.0 if "layer_norm" in name else 0.0)
        weights[name] = wave.reshape(shapes[name]).float()
    return weights


def inputs() -> tuple[Tensor, Tensor]:
    """values [3, C, S] and mask [3, S]: a whole series, one with a gap, a short one that is padded before its start."""
    steps = torch.arange(STEPS, dtype=torch.float64)
    values = torch.stack(
        [
            torch.stack([(steps * 0.3 * (n + 1)).sin() * 3 + steps * 0.05 + n, (steps * 0.11 - c).cos() * 50 + 7])
            for n, c in ((0, 0), (1, 2), (2, 1))
        ]
    ).float()
    mask = torch.ones(3, STEPS)
    mask[1, 29:31] = 0
    mask[2, : STEPS - 21] = 0
    return values * mask.unsqueeze(1), mask


def write_checkpoint(folder: Path, kind: str, weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(kind)))
    save_file(weights, folder / "model.safetensors")
    return folder


def run_package(package: Path, kind: str) -> dict[str, Any]:
    """What momentfm gives: `features` [3, C, P, E] as its encoder leaves them, and `pooled` [3, E], its own mean."""
    sys.path.insert(0, str(package))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from momentfm.models.moment import MOMENT
            from momentfm.utils.utils import NamespaceWithDefaults

            model = MOMENT(NamespaceWithDefaults(**config_of(kind)))
    finally:
        sys.path.remove(str(package))
    weights = weights_by_formula({name: tensor.shape for name, tensor in model.state_dict().items()})
    model.load_state_dict(weights, strict=False)
    model.eval()
    values, mask = inputs()
    with torch.no_grad():
        features = model.embed(x_enc=values, input_mask=mask, reduction="none").embeddings
        pooled = model.embed(x_enc=values, input_mask=mask, reduction="mean").embeddings
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {"shapes": shapes, "features": features.tolist(), "pooled": pooled.tolist()}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    found = {kind: rounded(run_package(Path(sys.argv[1]), kind)) for kind in KINDS}
    GOLDEN.write_text(json.dumps(found, separators=(",", ":")) + "\n")
